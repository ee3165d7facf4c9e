"""What is kept of an argument is a copy: writing to the argument, or to a result, afterwards changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sparsed
from conftest import DTYPES, random_qkv
from fake_model import MASK, FakeModel, prompt_of
from sparsed.kernels import ops

MASKED = np.random.default_rng(0).random((1, 2, 5, 5)) < 0.5


def test_patterns_keep_no_mask() -> None:
    q, k, v = random_qkv(0, 1, 2, 2, 70, 70, 16)
    mask = MASKED.copy()
    pattern = sparsed.BlockPattern.from_mask(mask, block_size=16, q_len=70, kv_len=70)
    before, number = sparsed.attention(q, k, v, pattern), hash(pattern)
    mask[:] = True
    pattern.to_mask()[:] = True
    np.testing.assert_array_equal(pattern.to_mask(), MASKED)
    assert np.array_equal(sparsed.attention(q, k, v, pattern), before)
    assert hash(pattern) == number


def test_caches_keep_no_arrays() -> None:
    q, k, v = random_qkv(1, 1, 2, 2, 70, 70, 16)
    key_mask = np.arange(70)[None] >= 9
    config = sparsed.SparseConfig(skip=0, rho=0.3, block_size=16, min_length=0)
    cache = sparsed.PatternCache(config, steps=3, prompt_length=40)
    cache.begin_step(0)
    cache.attend(0, q, k, v, key_mask)
    pattern = cache.pattern(0).to_mask()
    other = [array[..., ::-1].copy() for array in (q, k, v)]
    for array, values in zip((q, k, v), other, strict=True):
        array[:] = values
    key_mask[:] = True
    for step in (1, 2):
        cache.begin_step(step)
        out = cache.attend(0, q, k, v, key_mask)
        assert np.array_equal(out, sparsed.attention(*other, cache.pattern(0)))
        key_mask[:, :20] = True
    np.testing.assert_array_equal(cache.pattern(0).to_mask(), pattern)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_weights_are_copies(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((48, 64), (48,)))
    weight = weight.astype(DTYPES[dtype])
    x = rng.standard_normal((3, 64)).astype(np.float32)
    packed = ops.pack_weight(weight, bias)
    before = ops.linear(x, packed)
    weight[:], bias[:] = 0, 0
    assert np.array_equal(ops.linear(x, packed), before)


def test_refresh_is_copied() -> None:
    fractions = [0.4, 0.8]
    config = sparsed.SparseConfig(refresh=fractions)
    fractions.append(0.9)
    assert config.refresh == (0.4, 0.8)
    assert hash(config) == hash(sparsed.SparseConfig(refresh=(0.4, 0.8)))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("sparse", [None, sparsed.SparseConfig(skip=0, block_size=16, min_length=0)])
def test_callbacks_that_write(shift: bool, sparse: Any) -> None:
    prompt, padding = np.stack([prompt_of(9, 0), prompt_of(9, 1)]), np.ones((2, 9), bool)
    padding[1, :3] = False
    arguments: Any = {"gen_length": 6, "steps": 3, "sparse": sparse, "history": True, "seed": 0}
    expected = sparsed.generate(FakeModel(shift), prompt, prompt_mask=padding, **arguments)
    given, mask = prompt.copy(), padding.copy()

    def write(info: Any) -> None:
        given[:], mask[:], info.tokens[:] = 1, True, 1
        for array in (*info.unmasked, *info.confidence):
            array[:] = 0

    class Writing(FakeModel):
        """A model that uses its arguments and its buffer of logits as it likes."""

        def forward(self, ids: Any, *args: Any, **kwargs: Any) -> Any:
            logits = super().forward(ids, *args, **kwargs)
            ids[:] = MASK
            return logits

    result = sparsed.generate(Writing(shift), given, prompt_mask=mask, on_step=write, **arguments)
    for name in ("tokens", "history", "filled_at", "confidence"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))


def test_a_model_may_reuse_its_buffer() -> None:
    class Reusing(FakeModel):
        buffer: Any = None

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            logits = super().forward(*args, **kwargs)
            if self.buffer is None or self.buffer.shape != logits.shape:
                self.buffer = np.empty_like(logits)
            self.buffer[:] = logits
            return self.buffer

    for sampler in (sparsed.LLaDASampler(cfg_scale=1.0), sparsed.LLaDASampler(threshold=0.3), sparsed.LLaDASampler()):
        arguments: Any = {"gen_length": 6, "steps": 6, "sampler": sampler, "seed": 0}
        expected = sparsed.generate(FakeModel(), prompt_of(9), **arguments)
        assert np.array_equal(sparsed.generate(Reusing(), prompt_of(9), **arguments).tokens, expected.tokens)
