"""Answers many prompts on many machines: Ray Data sends them in batches to actors that each hold the model.

python examples/ray_data.py MODEL_DIR prompts.jsonl answers --actors 16 --cpus 8

Each line of prompts.jsonl is {"prompt": "..."}. The answers are JSON lines in the folder `answers`. Start the program
where Ray finds the cluster (with `ray job submit`, or RAY_ADDRESS), and put MODEL_DIR and the files into storage that
all machines share. Without a cluster, Ray uses this machine. With --engine torch --gpus 1 each actor gets one GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

import sparsed


class Answer:
    """The work of an actor, which loads the model once and then answers batch after batch."""

    def __init__(self, folder: str, engine: str, dtype: str, cpus: int, options: dict[str, Any]) -> None:
        sparsed.set_num_threads(cpus)
        placement = {"device": "cuda"} if engine == "torch" and ray.get_gpu_ids() else {}
        self.model = sparsed.load_model(folder, dtype, engine=engine, **placement)
        self.tokenizer = sparsed.load_tokenizer(folder)
        self.options = options

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Adds the column "answer" to {"prompt": (B,) texts}."""
        prompts, mask = sparsed.pad_left([self.tokenizer.chat(text) for text in batch["prompt"]])
        result = sparsed.generate(self.model, prompts, prompt_mask=mask, **self.options)
        return batch | {"answer": [self.tokenizer.text(token_ids) for token_ids in result.generated]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the prompts, answers them and writes the answers."""
    parser = argparse.ArgumentParser(description="Answers many prompts with sparsed on a Ray cluster.")
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("prompts", type=Path, help='JSON lines, each {"prompt": "..."}')
    parser.add_argument("answers", type=Path, help="folder to write")
    parser.add_argument("--actors", type=int, default=1, help="copies of the model")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of each actor")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each actor")
    parser.add_argument("--engine", choices=("native", "torch"), default="native")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=8, help="number of prompts of one generation")
    parser.add_argument("--gen-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--dense", action="store_true", help="no sparse attention")
    args = parser.parse_args(arguments)

    options = {
        "gen_length": args.gen_length,
        "steps": args.steps,
        "sparse": None if args.dense else sparsed.SparseConfig(),
        "seed": 0,
    }
    prompts = ray.data.read_json(str(args.prompts.resolve()), lines=True)
    answers = prompts.map_batches(
        Answer,
        fn_constructor_args=(str(args.model.resolve()), args.engine, args.dtype, args.cpus, options),
        batch_size=args.batch_size,
        compute=ray.data.ActorPoolStrategy(size=args.actors),
        num_cpus=args.cpus,
        num_gpus=args.gpus,
    )
    answers.write_json(str(args.answers.resolve()))


if __name__ == "__main__":
    main()
