"""
Compiled part of sparsed; use it through the package.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
import typing_extensions
__all__: list[str] = ['BlockPattern', 'HostBuffer', 'PackedKeyValues', 'PackedWeight', 'PatternCache', 'active_backend', 'attention', 'attention_and_select', 'backends', 'host_buffer', 'linear', 'linears', 'num_threads', 'pack_weight', 'pack_weights', 'packed_key_values', 'packed_nbytes', 'phases', 'quantize_rows', 'require_memory', 'rms_norm', 'rotary_', 'select', 'set_backend', 'set_num_threads', 'silu_gate_', 'token_confidence']
class HostBuffer:
    """
    A result that another library's ``from_dlpack`` takes without a copy.
    """
    @staticmethod
    def __new__(type, *args, **kwargs):
        """
        Create and return a new object.  See help(type) for accurate signature.
        """
    def __dlpack__(self, **kwargs) -> typing_extensions.CapsuleType:
        """
        A new capsule. Consumers' arguments (stream, max_version, dl_device, copy) change nothing on the CPU.
        """
    def __dlpack_device__(self) -> tuple[int, int]:
        ...
class BlockPattern:
    """
    Which key blocks each (batch, query head, query block) attends to.
    
    B batch, H query heads; queries and keys are cut into blocks of ``block_size`` tokens, the last one may be shorter.
    Immutable; compared and hashed by content.
    """
    @staticmethod
    def __new__(type, *args, **kwargs):
        """
        Create and return a new object.  See help(type) for accurate signature.
        """
    @staticmethod
    def from_mask(mask: typing.Any, *, block_size: typing.Any, q_len: typing.Any, kv_len: typing.Any, prompt_length: typing.Any = 0) -> BlockPattern:
        """
        From a bool array (B, H, q_blocks, kv_blocks), True where selected.
        """
    @staticmethod
    def full(batch: typing.Any = 1, heads: typing.Any = 1, *, block_size: typing.Any, q_len: typing.Any, kv_len: typing.Any, prompt_length: typing.Any = 0) -> BlockPattern:
        """
        Every block.
        """
    @staticmethod
    def load(path: typing.Any) -> BlockPattern:
        """
        Reads what ``save`` wrote; a truncated or foreign file is a ValueError.
        """
    @staticmethod
    def sliding_window(batch: typing.Any = 1, heads: typing.Any = 1, *, window: typing.Any, block_size: typing.Any, q_len: typing.Any, kv_len: typing.Any, prompt_length: typing.Any = 0) -> BlockPattern:
        """
        Every block that touches the ``window`` keys centred on one of the block's queries.
        """
    @staticmethod
    def streaming(batch: typing.Any = 1, heads: typing.Any = 1, *, window: typing.Any, sinks: typing.Any, block_size: typing.Any, q_len: typing.Any, kv_len: typing.Any, prompt_length: typing.Any = 0) -> BlockPattern:
        """
        A sliding window and the blocks of the first ``sinks`` keys.
        """
    def __eq__(self, other: typing.Any) -> typing.Any:
        ...
    def __hash__(self) -> int:
        ...
    def __repr__(self) -> str:
        ...
    def combined(self, other: typing.Any, operation: typing.Any) -> BlockPattern:
        """
        ``__or__``, ``__and__`` or ``__sub__`` with another pattern of the same geometry.
        """
    def jaccard(self, other: typing.Any) -> numpy.typing.NDArray[numpy.float64]:
        """
        ``|A and B| / |A or B|`` per head, float64 (B, H); 1 where both are empty.
        """
    def row(self, batch: typing.Any, head: typing.Any, q_block: typing.Any) -> numpy.typing.NDArray[numpy.int32]:
        """
        Sorted key blocks of one query block, int32.
        """
    def save(self, path: typing.Any) -> None:
        """
        Writes a versioned file.
        """
    def taken(self, batch: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], heads: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> BlockPattern:
        """
        The rows and heads at these places.
        """
    def to_bsr(self) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int32]]:
        """
        (indptr int64, indices int32): row r = (batch * heads + head) * q_blocks + q_block selects the key blocks
        ``indices[indptr[r]:indptr[r + 1]]``, ascending.
        """
    def to_mask(self) -> numpy.typing.NDArray[numpy.bool]:
        """
        Bool array (B, H, q_blocks, kv_blocks).
        """
    @property
    def batch(self) -> int:
        ...
    @property
    def block_size(self) -> int:
        ...
    @property
    def density(self) -> float:
        """
        Share of (query block, key block) pairs selected.
        """
    @property
    def head_density(self) -> numpy.typing.NDArray[numpy.float64]:
        """
        Density of each head, float64 (B, H).
        """
    @property
    def heads(self) -> int:
        ...
    @property
    def kv_blocks(self) -> int:
        ...
    @property
    def kv_len(self) -> int:
        ...
    @property
    def nbytes(self) -> int:
        """
        Bytes of the bit rows.
        """
    @property
    def prompt_length(self) -> int:
        ...
    @property
    def q_blocks(self) -> int:
        ...
    @property
    def q_len(self) -> int:
        ...
class PackedKeyValues:
    """
    Keys and values in the order that the kernels read, of ``sparsed.PackedKeyValues``.
    """
    @staticmethod
    def __new__(type, *args, **kwargs):
        """
        Create and return a new object.  See help(type) for accurate signature.
        """
    def attention(self, q: typing.Any, out: typing.Any, lse: typing.Any, scale: typing.Any) -> None:
        """
        Writes out, and lse unless it is None.
        """
    def update(self, positions: typing.Any, k: typing.Any, v: typing.Any) -> None:
        ...
    @property
    def dtype(self) -> str:
        ...
    @property
    def nbytes(self) -> int:
        ...
    @property
    def shape(self) -> tuple[int, int, int, int]:
        ...
class PatternCache:
    """
    The state machine of ``sparsed.PatternCache``.
    """
    @staticmethod
    def __new__(type, *args, **kwargs):
        """
        Create and return a new object.  See help(type) for accurate signature.
        """
    @staticmethod
    def given(*, steps: typing.Any, prompt_length: typing.Any, pattern: typing.Any) -> PatternCache:
        ...
    @staticmethod
    def load(path: typing.Any) -> PatternCache:
        ...
    @staticmethod
    def sparse(*, steps: typing.Any, prompt_length: typing.Any, skip: typing.SupportsFloat | typing.SupportsIndex, rho: typing.SupportsFloat | typing.SupportsIndex, block_size: typing.SupportsInt | typing.SupportsIndex, selection: typing.Any, selection_scale: typing.Any, isolate: bool, refresh: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], refresh_every: bool, min_length: typing.SupportsInt | typing.SupportsIndex, generation: typing.Any) -> PatternCache:
        ...
    @staticmethod
    def window(*, steps: typing.Any, prompt_length: typing.Any, window: typing.SupportsInt | typing.SupportsIndex, sinks: typing.SupportsInt | typing.SupportsIndex, block_size: typing.SupportsInt | typing.SupportsIndex, generation: typing.Any) -> PatternCache:
        ...
    def attend(self, layer: typing.Any, q: typing.Any, k: typing.Any, v: typing.Any, out: typing.Any, key_mask: typing.Any, scale: typing.Any, stream: typing.Any, scores: typing.Any, block_size: typing.Any, choose: typing.Any) -> None:
        ...
    def begin_step(self, step: typing.Any, unmasked: typing.Any) -> None:
        ...
    def density(self, layer: typing.Any) -> float:
        ...
    def pattern(self, layer: typing.Any) -> BlockPattern:
        ...
    def reset(self) -> None:
        ...
    def restore(self, state: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.Any, typing.Any, typing.SupportsInt | typing.SupportsIndex]]]) -> None:
        ...
    def save(self, path: typing.Any) -> None:
        ...
    def set_pattern(self, layer: typing.Any, pattern: typing.Any) -> None:
        ...
    def state(self) -> tuple[int, int, int, int, int, int, list[tuple[int, int, int, int, typing.Any, typing.Any, int]]]:
        ...
    @property
    def layers(self) -> list[int]:
        ...
    @property
    def nbytes(self) -> int:
        ...
    @property
    def phase(self) -> str:
        ...
    @property
    def prompt_length(self) -> int:
        ...
    @property
    def step(self) -> int:
        ...
class PackedWeight:
    """
    A weight matrix (N, K) in the order that the kernels read.
    """
    @staticmethod
    def __new__(type, *args, **kwargs):
        """
        Create and return a new object.  See help(type) for accurate signature.
        """
    def __repr__(self) -> str:
        ...
    @property
    def dtype(self) -> str:
        ...
    @property
    def has_bias(self) -> bool:
        ...
    @property
    def nbytes(self) -> int:
        ...
    @property
    def scales(self) -> numpy.typing.NDArray[numpy.float32] | None:
        """
        (N,) float32, the scale of each output's integers; None unless dtype is int8.
        """
    @property
    def shape(self) -> tuple[int, int]:
        ...
def active_backend() -> str:
    ...
def attention(q: typing.Any, k: typing.Any, v: typing.Any, out: typing.Any, lse: typing.Any, pattern: typing.Any, scale: typing.Any, key_mask: typing.Any, stream: typing.Any) -> None:
    """
    Writes out, and lse unless it is None.
    """
def attention_and_select(q: typing.Any, k: typing.Any, v: typing.Any, out: typing.Any, prompt_length: typing.Any, block_size: typing.Any, rho: typing.Any, selection: typing.Any, scale: typing.Any, selection_scale: typing.Any, isolate: typing.Any, generation: typing.Any, key_mask: typing.Any, scores: typing.Any, stream: typing.Any) -> BlockPattern:
    """
    Writes out, and scores unless it is None.
    """
def backends() -> list[tuple[str, bool, list[str]]]:
    """
    (name, available, reasons) of each backend, best first.
    """
def host_buffer(function: str, argument: str, q: typing.Any) -> HostBuffer:
    """
    For a call's out (like q, heads or tokens outermost in memory as in q) or lse.
    """
def linear(x: typing.Any, w: typing.Any, residual: typing.Any, out_dtype: typing.Any) -> numpy.ndarray:
    ...
def linears(x: typing.Any, ws: typing.Any, out_dtype: typing.Any) -> list[numpy.ndarray]:
    ...
def num_threads() -> int:
    ...
def pack_weight(weight: typing.Any, bias: typing.Any, dtype: typing.Any, scales: typing.Any) -> PackedWeight:
    ...
def pack_weights(weights: typing.Any, biases: typing.Any, dtype: typing.Any, scales: typing.Any) -> PackedWeight:
    ...
def packed_key_values(batch: typing.Any, kv_heads: typing.Any, length: typing.Any, head_dim: typing.Any, dtype: typing.Any, key_mask: typing.Any) -> PackedKeyValues:
    ...
def packed_nbytes(batch: typing.Any, kv_heads: typing.Any, length: typing.Any, head_dim: typing.Any, dtype: typing.Any) -> int:
    ...
def phases(*, steps: typing.Any, skip: typing.SupportsFloat | typing.SupportsIndex, selection: typing.Any, refresh: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], refresh_every: bool) -> list[str]:
    ...
def quantize_rows(weight: typing.Any) -> tuple[numpy.typing.NDArray[numpy.int8], numpy.typing.NDArray[numpy.float32]]:
    ...
def require_memory(bytes: typing.SupportsInt | typing.SupportsIndex, what: str) -> None:
    ...
def rms_norm(x: typing.Any, weight: typing.Any, eps: typing.Any) -> numpy.ndarray:
    ...
def rotary_(x: typing.Any, head_dim: typing.Any, cos: typing.Any, sin: typing.Any) -> None:
    ...
def select(q: typing.Any, k: typing.Any, prompt_length: typing.Any, block_size: typing.Any, rho: typing.Any, selection: typing.Any, scale: typing.Any, selection_scale: typing.Any, isolate: typing.Any, generation: typing.Any, key_mask: typing.Any, scores: typing.Any, stream: typing.Any) -> BlockPattern:
    ...
def set_backend(name: str | None) -> None:
    """
    The backend for arrays in host memory; None: the one that SPARSED_ISA names, or the best.
    """
def set_num_threads(n: typing.Any) -> None:
    ...
def silu_gate_(gate: typing.Any, up: typing.Any) -> None:
    ...
def token_confidence(logits: typing.Any, kind: typing.Any) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.float32]]:
    ...
