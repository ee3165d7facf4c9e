"""What a model is, whatever its family: the checked content of a published config.json."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from . import recognise

# Keys of transformers' PretrainedConfig and of training that no forward pass reads.
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

# Sizes and token ids: their products stay exact in 64 bits. Layers: what names are made of before a weight is read.
_MAX_INTEGER = 2**31 - 1
_MAX_LAYERS = 10_000


@dataclass(frozen=True)
class ModelConfig:
    """A checkpoint's shape and arithmetic.

    Attributes:
        family: "llada" or "dream": the sampler that `generate` takes by default.
        vocab_size: rows of the logits and of the embedding; at least the tokens that the tokenizer knows.
        head_dim: size of one attention head.
        max_length: the longest sequence that the config names. Longer ones run.
        end_token_ids: tokens after which a text is over.
        tie_weights: the output head is the embedding.
        qkv_bias: the query, key and value projections have a bias.
        shift_logits: logits at position i predict token i + 1 (Dream).
        rope_full_precision: cosines and sines stay float32; otherwise they are rounded to the activations' dtype.
        masked_positions: where a key mask is given, positions count the real tokens only.
    """

    family: Literal["llada", "dream"]
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_length: int
    mask_token_id: int
    eos_token_id: int | None
    bos_token_id: int | None
    pad_token_id: int | None
    end_token_ids: tuple[int, ...]
    tie_weights: bool
    qkv_bias: bool
    shift_logits: bool
    rope_full_precision: bool
    masked_positions: bool


class ConfigReader:
    """Takes the keys of a config.json one by one and refuses, by name, what the forward pass does not compute.

    A key that is absent or null has the default of the published model code. `finish` refuses keys that nobody took.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.source = source
        self._values = values
        self._taken: set[str] = set()

    def fail(self, key: str, expected: str) -> NoReturn:
        """Raises the ValueError that names `key`, what it is and what it should be."""
        found = f"is {json.dumps(self._values[key])[:200]}" if key in self._values else "is missing"
        raise ValueError(f"load_model: {key} {found}, expected {expected} (in {self.source})")

    def take(self, key: str, default: Any = None) -> Any:
        """The value as it is."""
        self._taken.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, *, maximum: int = _MAX_INTEGER) -> int:
        """An integer from 1 to `maximum`; without a default it must be there."""
        value = self.take(key, default)
        if type(value) is not int or not 1 <= value <= maximum:
            self.fail(key, f"an integer from 1 to {maximum}")
        return value

    def layers(self, key: str) -> int:
        """The number of layers, all of which must have full attention."""
        number = self.integer(key, maximum=_MAX_LAYERS)
        layer_types = ["full_attention"] * number
        self.require("layer_types", layer_types, layer_types)
        return number

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0; without a default it must be there."""
        value = self.take(key, default)
        if not is_positive(value):
            self.fail(key, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value. A null is false, as it is to the published code."""
        if self.take(key) is None and key in self._values:
            return False
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def require(self, key: str, expected: Any, default: Any) -> None:
        """Refuses every value but `expected`; `default` is what the published code assumes where the key is absent."""
        value = self.take(key, default)
        if value != expected or isinstance(value, bool) != isinstance(expected, bool):
            self.fail(key, f"{json.dumps(expected)}: other values change the arithmetic and are not supported")

    def divides(self, key: str, divisor_key: str, value: int, divisor: int) -> int:
        """`value` / `divisor`, refused where it leaves a remainder."""
        if value % divisor:
            self.fail(key, f"a multiple of {divisor_key} {divisor}")
        return value // divisor

    def token(self, key: str, default: int | None = None) -> int | None:
        """A token id, the first one where the config lists several."""
        ids = self.tokens(key)
        return ids[0] if ids else default

    def tokens(self, key: str) -> tuple[int, ...]:
        """Token ids: one, several or none."""
        value = self.take(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(token) is int and -1 <= token <= _MAX_INTEGER for token in ids):
            self.fail(key, "a token id or a list of them")
        return tuple(token for token in ids if token >= 0)

    def mask_token(self, vocab_size: int, default: int | None = None) -> int:
        """The mask token, which must be a row of the embedding."""
        token = self.token("mask_token_id", default)
        if token is None or token >= vocab_size:
            self.fail("mask_token_id", f"a token id below {vocab_size}, the rows of the embedding")
        return token

    def head_dim(self, key: str, heads_key: str, hidden_size: int, num_heads: int) -> int:
        """The size of a head, refused where the kernels do not compute it."""
        head_dim = self.divides(key, heads_key, hidden_size, num_heads)
        if head_dim % 8 or not 16 <= head_dim <= 256:
            self.fail(key, f"{heads_key} {num_heads} times a head_dim that is a multiple of 8 from 16 to 256")
        return head_dim

    def finish(self, ignored: frozenset[str] = frozenset()) -> None:
        """Refuses the remaining keys, unless they are switched off or known not to matter."""
        for key, value in self._values.items():
            known = key in self._taken or key in _HARMLESS or key in ignored or key.startswith("_")
            off = value in (None, "", [], {}) or (value in (False, 0) and not _ABOUT_ROPE.search(key))
            if not known and not off:
                expected = "no such key: it is unknown and could change the arithmetic"
                self.fail(key, recognise.quantised(key, value) or expected)


def is_positive(value: object) -> bool:
    """Whether it is a finite number above 0."""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max  # type: ignore[operator]
