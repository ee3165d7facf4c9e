"""Splits a model over several processes. Each holds a share of the heads, on one GPU or on the CPU.

torchrun --nproc-per-node 2 examples/tensor_parallel.py MODEL_DIR "What is sparse attention?"
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist

import sparsed


def main() -> None:
    """Answers one prompt. The first process prints the answer."""
    parser = argparse.ArgumentParser(description="Answers a prompt with a model over several processes.")
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("prompt")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--gen-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=128)
    args = parser.parse_args()

    gpus = torch.cuda.is_available()
    device = f"cuda:{os.environ['LOCAL_RANK']}" if gpus else "cpu"
    dist.init_process_group("nccl" if gpus else "gloo")
    model = sparsed.load_model(args.model, args.dtype, engine="torch", device=device, group=dist.group.WORLD)
    tokenizer = sparsed.load_tokenizer(args.model)
    # All processes run the same code and add up their parts of each layer. The seed makes their samplers draw the same.
    result = sparsed.generate(
        model,
        tokenizer.chat(args.prompt),
        gen_length=args.gen_length,
        steps=args.steps,
        sparse=sparsed.SparseConfig(),
        seed=0,
    )
    if dist.get_rank() == 0:
        print(tokenizer.text(result.generated[0]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
