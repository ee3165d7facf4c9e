"""Small calls of every kernel through the package, for compute-sanitizer. Results are checked against the CPU's."""

from __future__ import annotations

import itertools
from typing import Any

import torch

import sparsed


def check(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found.cpu().float(), expected.float(), atol=2e-2, rtol=0)


def main() -> None:
    torch.manual_seed(0)
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    for head_dim, dtype in itertools.product((32, 64, 96, 128, 256), dtypes):
        q, k, v = (torch.randn(1, heads, 150, head_dim).to(dtype) for heads in (2, 1, 1))
        gpu_q, gpu_k, gpu_v = q.cuda(), k.cuda(), v.cuda()
        mask = torch.rand(1, 150) < 0.9
        for keys in (None, mask):
            on_device = None if keys is None else keys.cuda()
            check(sparsed.attention(gpu_q, gpu_k, gpu_v, key_mask=on_device), sparsed.attention(q, k, v, key_mask=keys))
        for block_size, selection in itertools.product((32, 128), ("paper", "reference")):
            options: dict[str, Any] = {"prompt_length": 100, "block_size": block_size, "selection": selection}
            out, pattern = sparsed.attention_and_select(gpu_q, gpu_k, gpu_v, key_mask=mask.cuda(), **options)
            check(out, sparsed.attention(q, k, v, key_mask=mask))
            alone = sparsed.select(gpu_q, gpu_k, key_mask=mask.cuda(), **options)
            assert alone == pattern, "the selection alone keeps other blocks than that with an output"
            for keys in (None, mask):
                on_device = None if keys is None else keys.cuda()
                found = sparsed.attention(gpu_q, gpu_k, gpu_v, pattern, key_mask=on_device)
                check(found, sparsed.attention(q, k, v, pattern, key_mask=keys))


if __name__ == "__main__":
    main()
