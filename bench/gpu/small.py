"""Small calls of every CUDA kernel, for compute-sanitizer. Results are checked against the CPU's."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import torch

import sparsed

attention: Any = sparsed.attention  # called with starred arguments


def to_gpu(array: Any) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(array).cuda()


def compare(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found.float().cpu().numpy(), expected.astype(np.float32), atol=2e-2)


def main() -> None:
    rng = np.random.default_rng(0)
    dtypes = (ml_dtypes.bfloat16, np.float16, np.float32)
    for head_dim, dtype in itertools.product((32, 64, 96, 128, 256), dtypes):
        host: Any = [rng.standard_normal((1, heads, 150, head_dim), np.float32).astype(dtype) for heads in (2, 1, 1)]
        device: Any = [to_gpu(array) for array in host]
        mask = rng.random((1, 150)) < 0.9
        masks: Any = [(None, None), (mask, torch.from_numpy(mask).cuda())]
        for host_mask, device_mask in masks:
            compare(attention(*device, key_mask=device_mask), attention(*host, key_mask=host_mask))
        for block_size, selection in itertools.product((32, 128), ("paper", "reference")):
            options: dict[str, Any] = {"prompt_length": 100, "block_size": block_size, "selection": selection}
            out, pattern = sparsed.attention_and_select(*device, key_mask=masks[1][1], **options)
            compare(out, attention(*host, key_mask=mask))
            selected = sparsed.select(*device[:2], key_mask=masks[1][1], **options)
            assert selected == pattern, "`select` keeps other blocks than `attention_and_select`"
            for host_mask, device_mask in masks:
                found = attention(*device, pattern=pattern, key_mask=device_mask)
                compare(found, attention(*host, pattern=pattern, key_mask=host_mask))


if __name__ == "__main__":
    main()
