"""Block patterns: which key blocks each query block of each head attends to."""

from __future__ import annotations

import copyreg
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .drawing import draw
from .pattern_formats import block_mask_of, mask_of_block_mask, mask_of_rows
from .pattern_sets import PatternSets

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["BlockPattern", "compiled"]


class BlockPattern(PatternSets):
    """Which key blocks each (batch, query head, query block) attends to.

    B batch, H query heads. Queries and keys are cut into blocks of ``block_size`` tokens; the last may be shorter. A
    pattern never changes. Patterns are compared and hashed by content, and can be copied and pickled. A pattern that
    lies on a GPU comes to the host when it is read.

    Patterns are sets: ``a | b``, ``a & b`` and ``a - b`` are new patterns with what either, both, or only the first of
    two patterns selects; both need the same sizes, block size and prompt length. ``pattern[b]`` and ``pattern[b, h]``
    are patterns with these rows of the batch and these heads; ``b`` and ``h`` are integers, slices or lists of
    integers, and each keeps its dimension.

    There is no constructor: ``attention_and_select`` and ``select`` return patterns, and ``from_mask``, ``full``,
    ``sliding_window``, ``streaming`` and ``load`` make them.

    Attributes:
        batch: B.
        heads: H.
        q_blocks: Blocks of queries.
        kv_blocks: Blocks of keys.
        block_size: Tokens of a block.
        q_len: Queries.
        kv_len: Keys.
        prompt_length: Tokens before the generation.
        density: Share of the (query block, key block) pairs that are selected.
        head_density: The same for each head, float64 (B, H).
        nbytes: Bytes of the stored bits.

    Example:
        >>> pattern = BlockPattern.sliding_window(window=64, block_size=32, q_len=256, kv_len=256)
        >>> pattern.row(0, 0, 3)
        array([2, 3, 4], dtype=int32)
        >>> sinks = BlockPattern.streaming(window=1, sinks=4, block_size=32, q_len=256, kv_len=256)
        >>> (pattern | sinks).row(0, 0, 3), (sinks - pattern).row(0, 0, 3)
        (array([0, 2, 3, 4], dtype=int32), array([0], dtype=int32))
    """

    __slots__ = ("__weakref__", "_compiled")

    def __new__(cls) -> BlockPattern:
        """Refuses to make a pattern from nothing."""
        raise TypeError(
            "BlockPattern: it has no constructor, expected from_mask, full, sliding_window, streaming or load"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"BlockPattern: {name} cannot be set, a pattern never changes")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"BlockPattern: {name} cannot be deleted, a pattern never changes")

    @staticmethod
    def from_mask(mask: ArrayLike, *, block_size: int, q_len: int, kv_len: int, prompt_length: int = 0) -> BlockPattern:
        """Makes a pattern from a mask.

        Args:
            mask: (B, H, q_blocks, kv_blocks) bool, True where the key block is selected.
            block_size: 16, 32, 64, 128 or 256.
            q_len: Queries.
            kv_len: Keys.
            prompt_length: Tokens before the generation.

        Raises:
            TypeError, ValueError: An argument of another type, or sizes that do not fit.
        """
        return BlockPattern._of(
            _core.BlockPattern.from_mask(
                mask, block_size=block_size, q_len=q_len, kv_len=kv_len, prompt_length=prompt_length
            )
        )

    @staticmethod
    def from_bsr(
        indptr: ArrayLike,
        indices: ArrayLike,
        *,
        batch: int = 1,
        heads: int = 1,
        block_size: int,
        q_len: int,
        kv_len: int,
        prompt_length: int = 0,
    ) -> BlockPattern:
        """Makes a pattern from block-sparse rows, as ``to_bsr`` returns them.

        Args:
            indptr: (B * H * q_blocks + 1,) integers.
            indices: Integers, in any order within a row.
            batch: B.
            heads: H.
            block_size: 16, 32, 64, 128 or 256.
            q_len: Queries.
            kv_len: Keys.
            prompt_length: Tokens before the generation.

        Raises:
            TypeError, ValueError: An argument of another type, or rows that do not fit.
        """
        sizes = {"block_size": block_size, "q_len": q_len, "kv_len": kv_len}
        mask = mask_of_rows(indptr, indices, batch, heads, **sizes)
        return BlockPattern.from_mask(mask, prompt_length=prompt_length, **sizes)

    @staticmethod
    def from_block_mask(block_mask: Any, *, prompt_length: int = 0) -> BlockPattern:
        """Makes a pattern from a BlockMask of ``torch.nn.attention.flex_attention``.

        A pattern selects whole blocks. Blocks that the BlockMask calls partial are taken if its ``mask_mod`` hides none
        of their keys.

        Args:
            block_mask: With square blocks. Its batch and heads may be 1, which stands for all there: ``pattern[[0] * B,
                [0] * H]`` repeats them.
            prompt_length: Tokens before the generation.

        Raises:
            ImportError: torch is missing.
            TypeError: ``block_mask`` is not a BlockMask.
            ValueError: It hides a part of a block, or its blocks are not square or of a size that patterns have.
        """
        mask, sizes = mask_of_block_mask(block_mask)
        return BlockPattern.from_mask(mask, prompt_length=prompt_length, **sizes)

    @staticmethod
    def full(
        batch: int = 1, heads: int = 1, *, block_size: int, q_len: int, kv_len: int, prompt_length: int = 0
    ) -> BlockPattern:
        """Makes a pattern that selects every block.

        Raises:
            TypeError, ValueError: An argument of another type or outside its range.
        """
        return BlockPattern._of(
            _core.BlockPattern.full(
                batch, heads, block_size=block_size, q_len=q_len, kv_len=kv_len, prompt_length=prompt_length
            )
        )

    @staticmethod
    def sliding_window(
        batch: int = 1,
        heads: int = 1,
        *,
        window: int,
        block_size: int,
        q_len: int,
        kv_len: int,
        prompt_length: int = 0,
    ) -> BlockPattern:
        """Makes a pattern that selects every block that a window touches.

        Args:
            batch: B.
            heads: H.
            window: Keys of the window, which is centred on each query of the block.
            block_size: 16, 32, 64, 128 or 256.
            q_len: Queries.
            kv_len: Keys.
            prompt_length: Tokens before the generation.

        Raises:
            TypeError, ValueError: An argument of another type or outside its range.
        """
        return BlockPattern._of(
            _core.BlockPattern.sliding_window(
                batch,
                heads,
                window=window,
                block_size=block_size,
                q_len=q_len,
                kv_len=kv_len,
                prompt_length=prompt_length,
            )
        )

    @staticmethod
    def streaming(
        batch: int = 1,
        heads: int = 1,
        *,
        window: int,
        sinks: int,
        block_size: int,
        q_len: int,
        kv_len: int,
        prompt_length: int = 0,
    ) -> BlockPattern:
        """Makes a sliding window that also selects the blocks of the first keys (StreamingLLM, arXiv 2309.17453).

        Args:
            batch: B.
            heads: H.
            window: Keys of the window, which is centred on each query of the block.
            sinks: Number of first keys.
            block_size: 16, 32, 64, 128 or 256.
            q_len: Queries.
            kv_len: Keys.
            prompt_length: Tokens before the generation.

        Raises:
            TypeError, ValueError: An argument of another type or outside its range.
        """
        return BlockPattern._of(
            _core.BlockPattern.streaming(
                batch,
                heads,
                window=window,
                sinks=sinks,
                block_size=block_size,
                q_len=q_len,
                kv_len=kv_len,
                prompt_length=prompt_length,
            )
        )

    @staticmethod
    def load(path: str | os.PathLike[str]) -> BlockPattern:
        """Reads a pattern that ``save`` wrote.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is truncated, damaged or another kind of file.
        """
        return BlockPattern._of(_core.BlockPattern.load(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the pattern to a file of a versioned format.

        Raises:
            OSError: The file cannot be written.
        """
        self._compiled.save(path)

    @property
    def batch(self) -> int:  # noqa: D102  # the class describes its attributes
        return self._compiled.batch

    @property
    def heads(self) -> int:  # noqa: D102
        return self._compiled.heads

    @property
    def q_blocks(self) -> int:  # noqa: D102
        return self._compiled.q_blocks

    @property
    def kv_blocks(self) -> int:  # noqa: D102
        return self._compiled.kv_blocks

    @property
    def block_size(self) -> int:  # noqa: D102
        return self._compiled.block_size

    @property
    def q_len(self) -> int:  # noqa: D102
        return self._compiled.q_len

    @property
    def kv_len(self) -> int:  # noqa: D102
        return self._compiled.kv_len

    @property
    def prompt_length(self) -> int:  # noqa: D102
        return self._compiled.prompt_length

    @property
    def density(self) -> float:  # noqa: D102
        return self._compiled.density

    @property
    def head_density(self) -> NDArray[np.float64]:  # noqa: D102
        return self._compiled.head_density

    @property
    def nbytes(self) -> int:  # noqa: D102
        return self._compiled.nbytes

    def to_mask(self) -> NDArray[np.bool_]:
        """Returns a new bool array (B, H, q_blocks, kv_blocks), True where the key block is selected."""
        return self._compiled.to_mask()

    def row(self, batch: int, head: int, q_block: int) -> NDArray[np.int32]:
        """Returns the key blocks of one query block, int32, ascending.

        Raises:
            TypeError, ValueError: An index of another type or out of range.
        """
        return self._compiled.row(batch, head, q_block)

    def to_bsr(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Returns the pattern in block-sparse-row form; ``from_bsr`` is the way back.

        The arrays of one head, ``pattern[b, h].to_bsr()``, are the ``indptr`` and ``indices`` of
        ``scipy.sparse.bsr_array((data, indices, indptr))``, of torch's ``sparse_bsr_tensor`` (there ``crow_indices``
        and ``col_indices``), and, as int32, of FlashInfer's ``BlockSparseAttentionWrapper.plan``, whose R and C are the
        block size. Those of all heads are one matrix, in which the rows of the heads lie below each other.

        Returns:
            ``indptr``, int64 (B * H * q_blocks + 1,), and ``indices``, int32. Row r = (batch * H + head) * q_blocks +
            q_block selects the key blocks ``indices[indptr[r]:indptr[r + 1]]``, ascending.

        Raises:
            MemoryError: The arrays cannot fit into memory.
        """
        return self._compiled.to_bsr()

    def to_block_mask(self, device: Any = "cpu") -> Any:
        """Returns the pattern as a BlockMask of ``torch.nn.attention.flex_attention``.

        All of its blocks are full ones, so that the compiled flex_attention masks nothing inside of them.

        Args:
            device: Where the queries of the attention lie, as torch names devices.

        Raises:
            ImportError: torch is missing.
        """
        return block_mask_of(self, device)

    def jaccard(self, other: BlockPattern) -> NDArray[np.float64]:
        """Returns the Jaccard similarity ``|A and B| / |A or B|`` of each head, float64 (B, H); 1 if both are empty.

        Raises:
            TypeError, ValueError: ``other`` is not a BlockPattern, or has another shape.
        """
        return self._compiled.jaccard(compiled(other))

    def __eq__(self, other: object) -> bool:
        return self._compiled == other._compiled if isinstance(other, BlockPattern) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._compiled)

    def __repr__(self) -> str:
        return repr(self._compiled)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles."""
        geometry = {name: getattr(self, name) for name in ("block_size", "q_len", "kv_len", "prompt_length")}
        return _restore, (np.packbits(self.to_mask(), axis=-1), geometry)

    def plot(self, head: int = 0, *, batch: int = 0, ax: Any = None) -> Any:
        """Draws one head: query blocks downwards, key blocks to the right, the end of the prompt as a line.

        Needs matplotlib.

        Args:
            head: The query head.
            batch: The batch row.
            ax: The matplotlib Axes to draw into; None: new ones.

        Returns:
            The Axes.

        Raises:
            ImportError: matplotlib is missing.
            TypeError, ValueError: There is no such head or row.
        """
        return draw("BlockPattern.plot", self, head, batch, ax)

    def plot_grid(self, heads: Sequence[int] | None = None, *, batch: int = 0) -> Any:
        """Draws the heads side by side; ``PatternCache.plot_grid`` draws layers too. Needs matplotlib.

        Args:
            heads: None: all.
            batch: The batch row.

        Returns:
            A matplotlib Figure.

        Raises:
            ImportError: matplotlib is missing.
            TypeError, ValueError: A head or row that does not exist.
        """
        return draw("BlockPattern.plot_grid", self, heads, batch)

    def _repr_html_(self) -> str:
        html: str = draw("BlockPattern.html", self)
        return html


def compiled(pattern: Any) -> Any:
    """The compiled object behind a BlockPattern. Anything else goes through: the compiled module refuses it by name."""
    return pattern._compiled if isinstance(pattern, BlockPattern) else pattern


def _restore(bits: NDArray[np.uint8], geometry: dict[str, int]) -> BlockPattern:
    blocks = -(-geometry["kv_len"] // geometry["block_size"])
    return BlockPattern.from_mask(np.unpackbits(bits, axis=-1, count=blocks).astype(np.bool_), **geometry)


def _reduce(pattern: _core.BlockPattern) -> tuple[Any, ...]:
    """For the states of caches, which hold compiled patterns."""
    return compiled, (BlockPattern._of(pattern),)


copyreg.pickle(_core.BlockPattern, _reduce)
