"""One process of a gloo group: generates and saves what it got. Started by test_torch_parallel.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import sparsed
from goldens import golden_case


def main(rank: int, size: int, folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    sparsed.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    arrays = {}
    try:
        golden = golden_case(name)
        model = sparsed.load_model(golden.folder, "float32", engine="torch", group=dist.group.WORLD)
        dense = sparsed.generate(model, **golden.options())
        if golden.has_sparse:
            sparse = sparsed.generate(model, sparse=golden.sparse(), **golden.options())
            patterns = sparse.groups[0].patterns
            arrays["sparse"] = sparse.tokens
            arrays["pattern"] = np.stack(
                [patterns.pattern(layer).to_mask()[0] for layer in range(model.config.num_layers)]
            )
        # Given patterns are those of this process' heads.
        prompt = {"prompt_ids": np.arange(5, 45), "gen_length": 8, "steps": 4}
        sizes = {"window": 20, "block_size": 16, "q_len": 48, "kv_len": 48}
        window = sparsed.BlockPattern.sliding_window(1, model.num_heads, **sizes)
        arrays["given"] = sparsed.generate(model, sparse=window, **prompt).tokens
        try:
            sparsed.generate(model, sparse=window[:, [0] * model.config.num_heads], **prompt)
        except ValueError as error:
            arrays["heads_error"] = str(error)
        # Cached steps in this process' heads.
        cached = sparsed.generate(model, kv_cache=sparsed.DelayedCache(refresh=3), **golden.options())
        arrays |= {"dense": dense.tokens, "cached": cached.tokens}
        bfloat16 = sparsed.load_model(golden.folder, "bfloat16", engine="torch", group=dist.group.WORLD)
        arrays["bfloat16"] = bfloat16.forward(dense.tokens)
        try:
            model.forward([[1 + rank, 2]])
        except ValueError as error:
            arrays["error"] = str(error)
        store = model.new_key_values()
        model.forward([[1, 2, 3]], key_values=store)
        arrays["key_values"] = [store.nbytes, model.key_values_nbytes(3)]
        try:
            model.forward([[1, 2, 3]], key_values=store, computed=[rank], positions=[rank])
        except ValueError as error:
            arrays["computed_error"] = str(error)
        arrays["nbytes"] = model.nbytes
    finally:
        dist.destroy_process_group()
    np.savez(folder / f"{rank}.npz", **arrays)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
