"""Trains the demo model on a CPU, resumes where it stopped, and exports the checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .attention import Attend, dense, mostly_local, selected
from .data import Batch, Rows
from .model import DemoModel, Shape, export, initialise
from .vocabulary import NUM_NAMES, Vocabulary

STATE, LOG, CURVE = "state.pt", "log.jsonl", "loss.png"
_CLIP = 1.0
_LOG_EVERY = 20
_EVAL_SEED = 1 << 40


@dataclass(frozen=True)
class Phase:
    """Steps with rows of one length. Some batches have shorter rows, so that the model does not forget them.

    Attributes:
        length: The number of tokens of the longest rows.
        steps: The number of steps.
        tokens: The number of tokens of a batch.
        local: The fraction of the batches of long rows in which only essential tokens see everything.
        sparse: The fraction of the batches of at most 1024 tokens that train with SparseD's patterns.
        longest: The fraction of the batches that have the longest rows. The others have a length of an earlier phase.
    """

    length: int
    steps: int
    tokens: int = 4096
    local: float = 0.0
    sparse: float = 0.0
    longest: float = 0.6


# Short rows come first, because the model learns to look things up there at 13,000 tokens per second. Long rows teach
# it to find one sentence among a thousand. The last phase combines everything, with more sparse batches, while the
# learning rate falls.
PHASES = (
    Phase(128, 1400, longest=1.0),
    Phase(256, 1100),
    Phase(512, 1400, sparse=0.1),
    Phase(1024, 1200, sparse=0.2),
    Phase(2048, 500, tokens=8192, local=0.8, sparse=0.2),
    Phase(4096, 400, tokens=8192, local=0.95, sparse=0.2),
    Phase(8192, 900, tokens=8192, local=0.97, sparse=0.35, longest=0.45),
)


@dataclass(frozen=True)
class Options:
    """The options that determine a run. A folder that holds a run with other options is refused.

    Attributes:
        decay: The fraction of the steps, at the end, in which the learning rate falls to a twentieth.
        block, rho: SparseD's settings in sparse batches.
    """

    seed: int = 0
    rate: float = 8e-4
    warmup: int = 100
    decay: float = 0.4
    weight_decay: float = 0.01
    block: int = 32
    rho: float = 0.3
    names: int = NUM_NAMES
    shape: Shape = dataclasses.field(default_factory=Shape)
    phases: tuple[Phase, ...] = PHASES

    @property
    def steps(self) -> int:
        """The number of steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_of(self, step: int) -> int:
        """Returns the number of the phase that a step belongs to."""
        ends = np.cumsum([phase.steps for phase in self.phases])
        return int(np.searchsorted(ends, step, side="right"))

    def rate_at(self, step: int) -> float:
        """Returns the learning rate of a step: warm-up, then constant, then linear decay."""
        left = (self.steps - step) / (self.decay * self.steps)
        return self.rate * min((step + 1) / self.warmup, 1.0, max(left, 0.05))


class Trainer:
    """A run, whose state, log and curve lie in a folder.

    Raises:
        ValueError: The folder holds a run with other options.
    """

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder = folder
        self.options = options
        self.vocabulary = Vocabulary(options.names)
        self.rows = Rows(self.vocabulary, options.shape.max_length)
        self.model = DemoModel(options.shape, len(self.vocabulary))
        initialise(self.model, self.vocabulary, options.seed)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=options.weight_decay, foreach=True
        )
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE).is_file():
            self._load()
        log = folder / LOG
        if log.is_file():
            os.truncate(log, len(_whole_lines(log)))

    def _load(self) -> None:
        state = torch.load(self.folder / STATE, weights_only=True)
        given = json.dumps(dataclasses.asdict(self.options), sort_keys=True)
        if state["options"] != given:
            raise ValueError(f"train: the options are {given}, expected {state['options']} as {self.folder} has them")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]

    def save(self) -> None:
        """Writes the state. A crash while writing leaves the old state."""
        state = {
            "options": json.dumps(dataclasses.asdict(self.options), sort_keys=True),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        torch.save(state, self.folder / (STATE + ".new"))
        os.replace(self.folder / (STATE + ".new"), self.folder / STATE)

    def train(self, until: int | None = None, *, save_every: int = 200, minutes: float = math.inf) -> None:
        """Trains up to the step `until` (None for the last one), or for a number of minutes."""
        last = self.options.steps if until is None else min(until, self.options.steps)
        began = time.perf_counter()
        while self.step < last and time.perf_counter() - began < 60 * minutes:
            self._train_step()
            if self.step % save_every == 0:
                self.save()
        self.save()

    def _train_step(self) -> None:
        began = time.perf_counter()
        options = self.options
        rng = np.random.default_rng([options.seed, self.step])
        phase_number = options.phase_of(self.step)
        phase = options.phases[phase_number]
        length = phase.length
        if phase_number and rng.random() >= phase.longest:
            length = options.phases[int(rng.integers(phase_number))].length
        local = length > 1024 and rng.random() < phase.local
        sparse = length <= 1024 and rng.random() < phase.sparse
        batch = self.rows.batch(rng, length, max(1, phase.tokens // length), asked=local or sparse)
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate_at(self.step)
        attend: Sequence[Attend] | Attend = dense
        if local:
            attend = mostly_local(torch.from_numpy(batch.essential))
        elif sparse:
            attend = self._patterns(batch)
        loss, right = self.loss(batch, attend)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.ids.size
        self.seconds += time.perf_counter() - began
        if self.step % _LOG_EVERY == 0 or self.step == options.steps:
            self._log(length, "local" if local else "sparse" if sparse else "dense", loss.item(), right, norm.item())

    def _patterns(self, batch: Batch) -> list[Attend]:
        """Selects SparseD's patterns from the same rows at an earlier step, as its schedule does."""
        ids, positions = torch.from_numpy(batch.early_ids), torch.from_numpy(batch.positions)
        return selected(
            lambda attend: self.model(ids, positions, attend),
            torch.from_numpy(batch.answers),
            layers=self.options.shape.layers,
            block=self.options.block,
            rho=self.options.rho,
        )

    def loss(self, batch: Batch, attend: Sequence[Attend] | Attend = dense) -> tuple[Tensor, float]:
        """Returns the weighted loss, and the fraction of the targets in answers that are right."""
        rows, columns = torch.from_numpy(batch.rows), torch.from_numpy(batch.columns)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model(torch.from_numpy(batch.ids), torch.from_numpy(batch.positions), attend)
            logits = self.model.head(hidden[rows, columns]).float()
        targets = torch.from_numpy(batch.targets)
        losses = functional.cross_entropy(logits, targets, reduction="none")
        loss = (losses * torch.from_numpy(batch.weights)).sum() / len(batch.ids)
        begins = batch.answers[batch.rows]
        in_answer = (batch.columns >= begins) & (begins > 0)  # excludes plain text
        right = (logits.detach().argmax(-1) == targets).numpy()[in_answer]
        return loss, float(right.mean()) if len(right) else 0.0

    @torch.no_grad()
    def evaluate(self, length: int, rows: int, *, sparse: bool = False) -> float:
        """Returns the fraction of masked answer tokens that are right, on rows that training does not use."""
        rng = np.random.default_rng([self.options.seed, _EVAL_SEED, length])
        batch = self.rows.batch(rng, length, rows, asked=True)
        return self.loss(batch, self._patterns(batch) if sparse else dense)[1]

    def _log(self, length: int, kind: str, loss: float, right: float, norm: float) -> None:
        record: dict[str, Any] = {
            "step": self.step,
            "length": length,
            "kind": kind,
            "loss": round(loss, 4),
            "right": round(right, 4),
            "norm": round(norm, 3),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
        }
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(" ".join(f"{key} {value}" for key, value in record.items()), flush=True)


def _whole_lines(path: Path) -> bytes:
    """Returns the content without a last line that a crash has cut off."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of the log. A step that was repeated after a crash counts once, with its last record."""
    lines = _whole_lines(folder / LOG).decode("utf-8").splitlines()
    return sorted({record["step"]: record for record in map(json.loads, lines)}.values(), key=lambda r: r["step"])


def plot(folder: Path) -> Path:
    """Draws the loss and the fraction of right tokens over the steps. This needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_log(folder)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for length in sorted({record["length"] for record in records}):
        same_length = [record for record in records if record["length"] == length]
        for axes, key in ((left, "loss"), (right, "right")):
            steps, values = [r["step"] for r in same_length], [r[key] for r in same_length]
            axes.plot(steps, values, ".", markersize=3, label=str(length))
    left.set_yscale("log")
    for axes, label in ((left, "loss"), (right, "masked answer tokens that are right")):
        axes.set_xlabel("step")
        axes.set_ylabel(label)
    right.legend(title="tokens", fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / CURVE, dpi=150)
    pyplot.close(figure)
    return folder / CURVE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("training/run"), help="state, log, curve, checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every phase")
    parser.add_argument("--no-sparse", action="store_true", help="no batches with SparseD's patterns")
    parser.add_argument("--until", type=int, help="stop after this step; the next call resumes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time; the next call resumes")
    parser.add_argument("--threads", type=int, help="torch's threads")
    args = parser.parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    phases = tuple(
        dataclasses.replace(
            phase,
            steps=max(1, round(args.scale * phase.steps)),
            sparse=0.0 if args.no_sparse else phase.sparse,
        )
        for phase in PHASES
    )
    trainer = Trainer(args.out, Options(seed=args.seed, phases=phases))
    trainer.train(args.until, minutes=args.minutes)
    for length in (128, 512, 1024):
        found = {kind: trainer.evaluate(length, 32, sparse=kind == "sparse") for kind in ("dense", "sparse")}
        print(f"length {length}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in found.items()))
    export(trainer.model, trainer.vocabulary, args.out / "checkpoint")
    print(args.out / "checkpoint")
    if (args.out / LOG).is_file():
        print(plot(args.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
