"""The description of a model that is the same for every family, and a reader that checks a config.json."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from . import recognise
from .rope_scaling import Rope

# Keys of transformers' PretrainedConfig and of training. No forward pass reads them.
_HARMLESS = frozenset(
    """
    architectures attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens
    chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_range label2id length_penalty max_length min_length
    model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores prefix problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()
)

# An unknown key about RoPE changes the arithmetic even where it is false or 0.
_ABOUT_ROPE = re.compile("rope|rotary", re.IGNORECASE)

# Sizes and token ids are at most this large, so that a product of two is exact in 64 bits.
MAX_INTEGER = 2**31 - 1
_HEAD_DIMS = "a multiple of 8 from 16 to 256"
# The names of all layers' tensors are made before any weight is read, so their number needs a limit as well.
_MAX_LAYERS = 10_000


# The families whose models are sampled in one way.
Family = Literal["llada", "dream", "a2d"]
# Which tokens see which: all of them see each other.
Topology = Literal["bidirectional"]


@dataclass(frozen=True)
class ModelConfig:
    """A checkpoint's shape and arithmetic.

    Attributes:
        family: "llada", "dream" or "a2d". It selects the sampler that `generate` uses by default.
        vocab_size: The number of logits per position and of rows of the embedding. It may be larger than the
            tokenizer's vocabulary.
        head_dim: The size of one attention head. The heads together may be wider than hidden_size.
        rope: How queries and keys are rotated.
        max_length: The longest sequence that the config allows, after the scaling of its RoPE. Longer sequences run as
            well.
        end_token_ids: The tokens that end a text, eos first. Those that end a turn are among them, as far as the files
            of the tokenizer declare them.
        tie_weights: Whether the output head is the embedding.
        qkv_bias: Whether the query, key and value projections have a bias.
        qk_norm: Whether each head of queries and keys is normalised (RMSNorm) before it is rotated.
        attention: Which tokens see which.
        shift_logits: Whether the logits at position i predict token i + 1, as Dream's do.
        rope_full_precision: Whether cosines and sines stay float32. Otherwise they are rounded to the activations'
            dtype.
        masked_positions: Whether positions count only the real tokens when a key mask is given.
    """

    family: Family
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope: Rope
    max_length: int
    mask_token_id: int
    eos_token_id: int | None
    bos_token_id: int | None
    pad_token_id: int | None
    end_token_ids: tuple[int, ...]
    tie_weights: bool
    qkv_bias: bool
    qk_norm: bool
    attention: Topology
    shift_logits: bool
    rope_full_precision: bool
    masked_positions: bool

    @property
    def rope_theta(self) -> float:
        """The base of RoPE, before its scaling."""
        return self.rope.theta


class ConfigReader:
    """Reads the keys of a config.json one by one and refuses values that the forward pass does not support.

    A key that is absent or null has the default of the published model code. `finish` refuses keys that nothing read.

    Args:
        values: The content of the config.json, or values of another file under the keys of a config.json.
        source: The name of the file.
        names: What the other file calls these keys. Errors name these.
    """

    def __init__(self, values: Mapping[str, Any], source: str, names: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._values = values
        self._names = names or {}
        self._taken: set[str] = set()

    def fail(self, key: str, expected: str) -> NoReturn:
        """Raises a ValueError that names `key`, its value and what was expected."""
        found = f"is {json.dumps(self._values[key])[:200]}" if key in self._values else "is missing"
        raise ValueError(f"load_model: {self._name(key)} {found}, expected {expected} (in {self.source})")

    def _name(self, key: str) -> str:
        return self._names.get(key, key)

    def take(self, key: str, default: Any = None) -> Any:
        """Returns the value of `key` unchecked, or `default` where it is absent or null."""
        self._taken.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, *, maximum: int = MAX_INTEGER) -> int:
        """Returns an integer from 1 to `maximum`. The key is required if there is no default."""
        value = self.take(key, default)
        if type(value) is not int or not 1 <= value <= maximum:
            self.fail(key, f"an integer from 1 to {maximum}")
        return value

    def layers(self, key: str) -> int:
        """Returns the number of layers, and checks that all of them have full attention."""
        number = self.integer(key, maximum=_MAX_LAYERS)
        layer_types = ["full_attention"] * number
        self.require("layer_types", layer_types, layer_types)
        return number

    def positive(self, key: str, default: float | None = None) -> float:
        """Returns a finite number above 0. The key is required if there is no default."""
        value = self.take(key, default)
        if not is_positive(value):
            self.fail(key, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns a boolean. Null counts as false, as it does in the published code."""
        if self.take(key) is None and key in self._values:
            return False
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def require(self, key: str, expected: Any, default: Any) -> None:
        """Refuses every value but `expected`. `default` is the published code's value for an absent key."""
        value = self.take(key, default)
        if value != expected or isinstance(value, bool) != isinstance(expected, bool):
            self.fail(key, f"{json.dumps(expected)}: other values change the arithmetic and are not supported")

    def divides(self, key: str, divisor_key: str, value: int, divisor: int) -> int:
        """Returns `value` / `divisor`, and refuses a division with a remainder."""
        if value % divisor:
            self.fail(key, f"a multiple of {self._name(divisor_key)} {divisor}")
        return value // divisor

    def token(self, key: str, default: int | None = None) -> int | None:
        """Returns a token id, the first one if the config lists several."""
        ids = self.tokens(key)
        return ids[0] if ids else default

    def tokens(self, key: str) -> tuple[int, ...]:
        """Returns the token ids under a key that holds one, a list of them or none."""
        value = self.take(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(token) is int and -1 <= token <= MAX_INTEGER for token in ids):
            self.fail(key, "a token id or a list of them")
        return tuple(token for token in ids if token >= 0)

    def mask_token(self, vocab_size: int, default: int | None = None) -> int:
        """Returns the id of the mask token, which must have a row in the embedding."""
        token = self.token("mask_token_id", default)
        if token is None or token >= vocab_size:
            self.fail("mask_token_id", f"a token id below {vocab_size}, the rows of the embedding")
        return token

    def head_dim(self, key: str, heads_key: str, hidden_size: int, num_heads: int) -> int:
        """Returns hidden_size / num_heads, and refuses sizes of a head that the kernels do not support."""
        head_dim = self.divides(key, heads_key, hidden_size, num_heads)
        if not _is_head_dim(head_dim):
            self.fail(key, f"{self._name(heads_key)} {num_heads} times a head_dim that is {_HEAD_DIMS}")
        return head_dim

    def own_head_dim(self, key: str, default: int) -> int:
        """Returns the size of a head that the config names apart from hidden_size."""
        head_dim = self.integer(key, default)
        if not _is_head_dim(head_dim):
            self.fail(key, _HEAD_DIMS)
        return head_dim

    def finish(self, ignored: frozenset[str] = frozenset()) -> None:
        """Refuses the keys that nothing read, unless they are switched off or known not to matter."""
        for key, value in self._values.items():
            known = key in self._taken or key in _HARMLESS or key in ignored or key.startswith("_")
            off = value in (None, "", [], {}) or (value in (False, 0) and not _ABOUT_ROPE.search(key))
            if not known and not off:
                expected = "no such key: it is unknown and could change the arithmetic"
                self.fail(key, recognise.quantised(key, value) or expected)


def is_positive(value: object) -> bool:
    """Returns whether `value` is a finite number above 0."""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max  # type: ignore[operator]


def _is_head_dim(head_dim: int) -> bool:
    return head_dim % 8 == 0 and 16 <= head_dim <= 256
