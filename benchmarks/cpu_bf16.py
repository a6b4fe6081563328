"""How much faster training in bf16 is on a CPU that multiplies it natively, and what it does to accuracy.

    python benchmarks/cpu_bf16.py [--json PATH] [--quick] [--rounds N] [--threads N] [--batch-size N] [--models NAME...]
    python benchmarks/cpu_bf16.py --accuracy --archive cifar10.zip [--epochs N] [--seeds N] [--share F]

Claims: on a CPU with AMX, Kiln's training step of resnet18 and resnet50 at 224 px is at least 2.5 times as fast in bf16 as
in fp32, both with the memory format that suits them best; and networks trained on CIFAR-10 in bf16 are as accurate as those
trained in fp32 from the same seed, on the same samples in the same order, within 0.5 points.

How: the arms (precision x memory format) take turns, round after round, in an order that moves on by one each time, so that
all meet the same noise; a turn is one step that does not count and then `--steps` that do. Speed is images by second of
the processor's time (threads counted singly) and of the clock; the ratio is the median over rounds of the best bf16 arm to
the best fp32 arm of the same round. `--accuracy` runs `kiln.train` on the archive, which measures the last weights once on the
test images, in fp32; it gives the mean difference over seeds with its 95 % interval (Student's t over pairs).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import record
import timm
import torch
from scipy import stats

import kiln
from kiln.batch import Batch
from kiln.engine.state import State
from kiln.engine.step import Step
from kiln.engine.supervised import supervised
from kiln.losses import CrossEntropy
from kiln.observe.progress import make
from kiln.optim.groups import parameter_groups
from kiln.optim.optimizers import adamw

MODELS = ("resnet18", "resnet50")
PRECISIONS = ("fp32", "bf16")
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
TARGET_RATIO = 2.5
MOST_POINTS_LOST = 0.5
PACKAGES = ("torch", "timm")


@dataclass(frozen=True)
class Turn:
    """One arm's turn in one round: images per second, by the clock and by the processor's time."""

    model: str
    precision: str
    memory_format: str
    round: int
    images: int
    seconds: float
    cpu_seconds: float
    loss: float

    @property
    def per_second(self) -> float:
        return self.images / self.seconds

    @property
    def per_cpu_second(self) -> float:
        return self.images / self.cpu_seconds


class TrainingArm:
    """Kiln's step on one batch that is there already."""

    def __init__(self, name: str, precision: str, memory_format: str, batch_size: int, px: int) -> None:
        torch.manual_seed(0)
        layout: Any = FORMATS[memory_format]
        model = timm.create_model(name, num_classes=10).train().to(memory_format=layout)
        self.name, self.precision, self.memory_format = name, precision, memory_format
        self.state = State(model, adamw(parameter_groups(model, lr=1e-3, weight_decay=0.05), lr=1e-3))
        self.step = Step(supervised(CrossEntropy(smoothing=0.1)), precision=precision)
        images = torch.randn(batch_size, 3, px, px).contiguous(memory_format=layout)
        self.batch = Batch(images, torch.arange(batch_size) % 10)

    def turn(self, round_: int, num_steps: int) -> Turn:
        """Steps, after one that does not count."""
        self._step()
        begun, cpu = time.perf_counter(), time.process_time()
        for _ in range(num_steps):
            loss = self._step()
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
        return Turn(
            self.name,
            self.precision,
            self.memory_format,
            round_,
            num_steps * len(self.batch),
            seconds,
            cpu_seconds,
            loss,  # pyright: ignore[reportPossiblyUnboundVariable] - at least one step is asked for
        )

    def _step(self) -> float:
        measured = self.step(self.state, self.batch)
        self.state.step += 1
        return float(measured.loss)


def run_rounds(name: str, *, rounds: int, num_steps: int, batch_size: int, px: int) -> list[Turn]:
    """All arms in turn."""
    arms = [TrainingArm(name, p, f, batch_size, px) for p in PRECISIONS for f in FORMATS]
    turns = []
    for round_ in range(rounds):
        shift = round_ % len(arms)
        for arm in arms[shift:] + arms[:shift]:
            turns.append(arm.turn(round_, num_steps))
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    losses = {turn.precision: turn.loss for turn in turns if turn.round == 0}
    if abs(losses["bf16"] - losses["fp32"]) > 0.1 * abs(losses["fp32"]):
        raise SystemExit(f"the arms did other work: losses {losses}")
    return turns


def best_format(turns: list[Turn], precision: str) -> str:
    """The memory format with the larger median."""

    def speed(memory_format: str) -> float:
        chosen = [t for t in turns if (t.precision, t.memory_format) == (precision, memory_format)]
        return statistics.median(t.per_cpu_second for t in chosen)

    return max(FORMATS, key=speed)


def ratios(turns: list[Turn], what: str) -> list[float]:
    """bf16 to fp32, each in its best format, round by round."""
    best = {precision: best_format(turns, precision) for precision in PRECISIONS}
    by_round: dict[int, dict[str, float]] = {}
    for turn in turns:
        if turn.memory_format == best[turn.precision]:
            by_round.setdefault(turn.round, {})[turn.precision] = getattr(turn, what)
    return [speeds["bf16"] / speeds["fp32"] for speeds in by_round.values()]


def show_speed(name: str, turns: list[Turn], batch_size: int, px: int) -> None:
    rows = []
    for precision in PRECISIONS:
        for memory_format in FORMATS:
            mine = [t for t in turns if (t.precision, t.memory_format) == (precision, memory_format)]
            cpu = [t.per_cpu_second for t in mine]
            rows.append(
                (
                    f"{precision} {memory_format}",
                    f"{statistics.median(t.per_second for t in mine):.2f}",
                    f"{statistics.median(cpu):.2f}",
                    f"{min(cpu):.2f}-{max(cpu):.2f}",
                    str(len(mine)),
                )
            )
    header = ("arm", "images/s", "images/cpu s", "range", "n")
    record.show(f"{name}: batch {batch_size}, {px} px, {torch.get_num_threads()} threads, medians", header, rows)


def speed(given: argparse.Namespace) -> tuple[list[record.Claim], list[dict[str, Any]]]:
    """The first claim; it is made for CPUs with AMX, and elsewhere only told."""
    torch.set_num_threads(given.threads)
    has_amx = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    claims, rows = [], []
    for name in given.models:
        batch_size, rounds = (2, 1) if given.quick else (given.batch_size, given.rounds)
        turns = run_rounds(name, rounds=rounds, num_steps=given.steps, batch_size=batch_size, px=given.px)
        show_speed(name, turns, batch_size, given.px)
        rows += [asdict(turn) for turn in turns]
        clock, cpu = (statistics.median(ratios(turns, what)) for what in ("per_second", "per_cpu_second"))
        spread = ratios(turns, "per_cpu_second")
        print(f"bf16 / fp32: {cpu:.2f} by cpu time ({min(spread):.2f}-{max(spread):.2f}), {clock:.2f} by the clock")
        if has_amx:
            title = f"bf16 to fp32, training {name} at {given.px} px on a CPU with AMX"
            claims.append(record.Claim(title, clock, f">= {TARGET_RATIO}", clock >= TARGET_RATIO))
    if not has_amx:
        print("this CPU has no AMX: nothing is claimed of it (AVX512-BF16 alone multiplies twice as fast as fp32)")
    return claims, rows


def accuracy(given: argparse.Namespace) -> tuple[list[record.Claim], list[dict[str, Any]]]:
    """The second claim: pairs of runs that differ in precision alone."""
    rows = []
    seeds, epochs, share = (1, 1, 0.02) if given.quick else (given.seeds, given.epochs, given.share)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for precision in PRECISIONS if seed % 2 == 0 else reversed(PRECISIONS):
                begun = time.perf_counter()
                run = kiln.train(
                    str(given.archive),
                    model="kiln/small_cnn",
                    epochs=epochs,
                    batch_size=128,
                    precision=precision,
                    seed=seed,
                    output=folder,
                    overrides={"augment.crop": "padded", "data.train_fraction": share, "data.val_fraction": 0.0},
                    progress=make(quiet=True),
                )
                value = run.result["metrics"]["test"]["accuracy"]["value"]
                rows.append({"seed": seed, "precision": precision, "accuracy": value})
                print(f"seed {seed} {precision}: {value:.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
    found = {(row["seed"], row["precision"]): row["accuracy"] for row in rows}
    differences = [100 * (found[seed, "bf16"] - found[seed, "fp32"]) for seed in range(seeds)]
    mean = statistics.fmean(differences)
    half = stats.t.ppf(0.975, seeds - 1) * statistics.stdev(differences) / seeds**0.5 if seeds > 1 else float("inf")
    print(f"bf16 less fp32: {mean:+.2f} points, 95 % interval {mean - half:+.2f} to {mean + half:+.2f}, n = {seeds}")
    title, target = "points of accuracy between bf16 and fp32 on CIFAR-10, mean of pairs", f"within {MOST_POINTS_LOST}"
    return [record.Claim(title, mean, target, abs(mean) <= MOST_POINTS_LOST)], rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write machine, versions, raw rows and claims here")
    parser.add_argument("--quick", action="store_true", help="prove in about a minute that the script works")
    parser.add_argument("--rounds", type=int, default=8, help="how often the arms take turns")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn that count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--accuracy", action="store_true", help="train on CIFAR-10 instead")
    parser.add_argument("--archive", type=Path, help="CIFAR-10 as images in class folders under train and test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.4, help="share of the training images to use")
    given = parser.parse_args()
    if given.accuracy:
        if given.archive is None:
            parser.error("--accuracy needs --archive")
        torch.set_num_threads(given.threads)
        claims, rows = accuracy(given)
    else:
        claims, rows = speed(given)
    status = record.finish(claims, rows, packages=PACKAGES, path=given.json)
    return 0 if given.quick else status


if __name__ == "__main__":
    sys.exit(main())
