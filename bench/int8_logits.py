"""`python -m bench.int8_logits`: how far the predictions of int8 weights are from those of the stored weights.

The answers of the model to prompts of `bench.quality` are masked again, one share of their tokens after the other. At
the masked positions two distributions are compared: that of the stored weights in bfloat16, and that of a variant. The
top-1 agreement says how often both prefer the same token, and KL is the divergence of the second one from the first in
nats per token. The variant "float32" has the stored weights and float32 activations, which shows what rounding the
activations to bfloat16 does. The forwards are those of decoding with a
threshold, which more uncertain predictions increase.

Source: the measure by shares of masks is that of DLLMQuaRot (FelixMessi/QDLM has the accuracy only).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparsed
from sparsed import LLaDASampler
from sparsed.apps.environment import machine_info
from sparsed.apps.eval.scoring import bootstrap
from sparsed.models.files import demo_model_folder, replacing
from sparsed.tables import format_table, markdown_table

from .int8_models import STORED, VARIANTS
from .quality import BEDS, GEN_LENGTH, models_of

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
FLOAT32 = "float32"
_BLOCK, _THRESHOLD = 8, 0.9


def run(bed: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of each variant: by share of masks, and the forwards of each prompt."""
    tokenizer = sparsed.load_tokenizer(folder)
    models = models_of(bed, folder, tokenizer, args)
    variants = {FLOAT32: sparsed.load_model(folder, "float32")}
    variants |= {name: models[name] for name in args.weights if name != STORED}
    stored = models[STORED]
    found: dict[str, Any] = {name: _empty() for name in (STORED, *variants)}
    rng = np.random.default_rng(args.seed)
    for index in range(args.prompts):
        prompt = BEDS[bed](tokenizer, args.lengths[0], index, args.seed)
        answered = _decode(stored, prompt.ids, index, found[STORED])
        for model_name, model in variants.items():
            _decode(model, prompt.ids, index, found[model_name])
        order = rng.permutation(GEN_LENGTH)
        for share in SHARES:
            masked = len(prompt.ids) + np.sort(order[: max(1, round(share * GEN_LENGTH))])
            ids = answered.copy()
            ids[masked] = stored.config.mask_token_id
            expected = _log_softmax(stored.forward(ids[None], positions=masked)[0])
            for name, model in variants.items():
                _compare(expected, _log_softmax(model.forward(ids[None], positions=masked)[0]), found[name], share)
    return found


def _empty() -> dict[str, Any]:
    return {"agree": {str(share): [] for share in SHARES}, "kl": {str(share): [] for share in SHARES}, "forwards": []}


def _decode(model: Any, ids: Sequence[int], seed: int, cell: dict[str, Any]) -> NDArray[np.int64]:
    """Generates with a threshold, notes the forwards, and returns the prompt with its answer."""
    sampler = LLaDASampler(_BLOCK, threshold=_THRESHOLD)
    settings: dict[str, Any] = {"gen_length": GEN_LENGTH, "steps": GEN_LENGTH, "sampler": sampler, "seed": seed}
    result = sparsed.generate(model, ids, **settings).require_whole()
    cell["forwards"].append(result.stats.forwards)
    return np.array(result.tokens[0], np.int64)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    normed: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normed


def _compare(expected: NDArray[np.float64], found: NDArray[np.float64], cell: dict[str, Any], share: float) -> None:
    same = expected.argmax(axis=1) == found.argmax(axis=1)
    cell["agree"][str(share)].append([int(same.sum()), same.size])
    kl = (np.exp(expected) * (expected - found)).sum(axis=1)
    cell["kl"][str(share)].append(round(float(kl.mean()), 7))


def header() -> tuple[str, ...]:
    """Returns the names of the columns of `rows_of`."""
    return ("weights", *(f"{share:.0%} masked" for share in SHARES), "KL, all masked", "forwards", "more forwards, %")


def rows_of(cells: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns a row per variant: the top-1 agreement in percent by share of masks, KL, and the forwards."""
    base = np.array(cells[STORED]["forwards"], float)
    rows = []
    for name, cell in cells.items():
        forwards = np.array(cell["forwards"], float)
        if name == STORED:
            rows.append((name, *["-"] * (len(SHARES) + 1), f"{forwards.mean():.2f}", "-"))
            continue
        hits = (np.sum(cell["agree"][str(share)], axis=0) for share in SHARES)
        agreement = [f"{100 * same / positions:.2f}" for same, positions in hits]
        more = bootstrap((forwards - base) / base.mean()).scaled(100)
        kl = np.mean(cell["kl"][str(SHARES[-1])])
        change = f"{more.mean:+.1f} ({more.bounds(1, '+')})"
        rows.append((name, *agreement, f"{kl:.5f}", f"{forwards.mean():.2f}", change))
    return rows


def markdown(content: dict[str, Any]) -> str:
    """Returns the tables of a file of results for the documentation."""
    parts = []
    for name, cells in content["predictions"].items():
        bed, length = name.split()
        prompts = len(cells[STORED]["forwards"])
        parts.append(f"{bed}, {length} tokens, {prompts} prompts:\n\n{markdown_table(header(), rows_of(cells))}\n")
    machine = content["machine"]
    parts.append(f"{machine['cpu']}. `python -m bench.int8_logits shipped`, and `digits FOLDER`.\n")
    return "\n".join(parts)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.int8_logits", description=__doc__)
    parser.add_argument("bed", choices=tuple(BEDS))
    parser.add_argument("folder", type=Path, nargs="?", help="the model (default: the shipped one)")
    parser.add_argument("--lengths", type=int, nargs=1, default=[512])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--weights", nargs="+", metavar="NAME", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("bench/results/quality/int8_logits.json"))
    args = parser.parse_args()
    args.dtype = "bfloat16"
    found = run(args.bed, args.folder or demo_model_folder(), args)
    content: dict[str, Any] = {"predictions": {}}
    if args.json.exists():
        content = json.loads(args.json.read_text(encoding="utf-8"))
    content["machine"] = machine_info()
    content["predictions"][f"{args.bed} {args.lengths[0]}"] = found
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.json) as new:
        new.write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(format_table(header(), rows_of(found)))


if __name__ == "__main__":
    main()
