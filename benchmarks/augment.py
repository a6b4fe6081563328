"""Augmentation of a batch of 128 uint8 images at 224 px into normalised float32, Kiln and torchvision, same operations.

    python benchmarks/augment.py [--json PATH] [--quick] [--rounds N] [--policies NAME ...] [--device cuda]

Claims, on the CPU: per sample, `standard` is at least 8 times and `trivial` at least 2.5 times as fast as torchvision v2.

How: Kiln takes the batch in one process with as many threads as there are cores, compiled by Numba where that is installed
(`pip install 'torchkiln[fast]'`). torchvision takes each sample alone, in as many processes as there are cores, one thread
each; a process writes its normalised samples straight into a shared batch, which is less than a DataLoader does. Arms take
turns, round after round; the ratio is the median over rounds of the ratio within a round. Beside it stands the ratio of the
time that threads and processes spent on the processor, which other work on the machine disturbs less. Probabilities are the
same on both sides, the numbers drawn are not. With `--device cuda` torchvision works on whole batches with one set of
parameters for all (it has no others), kornia with parameters per sample; Kiln likewise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import numpy as np
import record
import torch
from torch import Tensor

from kiln.augment import backend, policy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POLICIES = ("light", "standard", "trivial", "rand(2,9)", "autoaugment(imagenet)")
TARGETS = {"standard": 8.0, "trivial": 2.5}
PACKAGES = ("torch", "torchvision", "kornia", "numpy", "numba", "torchkiln")
NUM_PROCESSES = os.cpu_count() or 1


def torchvision_v2(name: str) -> Callable[[Tensor], Tensor]:
    """The same operations with the same probabilities, as torchvision's users write them."""
    from torchvision.transforms import v2

    warp = v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    before, after = {
        "light": ([], []),
        "standard": ([v2.RandomApply([warp], p=0.5), v2.ColorJitter(0.3, 0.3, 0.3)], [v2.RandomErasing(0.25)]),
        "trivial": ([v2.TrivialAugmentWide()], []),
        "rand(2,9)": ([v2.RandAugment(2, 9)], []),
        "autoaugment(imagenet)": ([v2.AutoAugment()], []),
    }[name]
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(MEAN), list(STD))]
    return v2.Compose([v2.RandomHorizontalFlip(), *before, *scale, *after])


def kornia_batch(name: str) -> Callable[[Tensor], Tensor] | None:
    """Kornia on whole batches with parameters per sample, where it has the operations."""
    import kornia.augmentation as k

    if name not in ("light", "standard"):
        return None
    steps: list[Any] = [k.RandomHorizontalFlip(p=0.5)]
    if name == "standard":
        steps += [k.RandomAffine(10.0, (0.1, 0.1), (0.9, 1.1), p=0.5), k.ColorJitter(0.3, 0.3, 0.3, p=1.0)]
    steps.append(k.Normalize(torch.tensor(MEAN), torch.tensor(STD)))
    if name == "standard":
        steps.append(k.RandomErasing(p=0.25))
    chain = k.AugmentationSequential(*steps, data_keys=["input"])
    return lambda images: chain(images.float() / 255)


def kiln(name: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Kiln, parameters drawn anew for each batch; they are part of the time."""
    chosen, epochs = policy(name), iter(range(10**9))
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)

    def augment(images: Tensor) -> Tensor:
        params = chosen.draw(0, next(epochs), np.arange(len(images), dtype=np.uint64))
        return chosen(images, params, mean=mean, std=std)

    return augment


def work_on_samples(images: Tensor, out: Tensor, rows: range, orders: Any) -> None:
    """A torchvision process: for each name that comes, its rows of the batch, one sample after another."""
    torch.set_num_threads(1)
    transforms: dict[str, Callable[[Tensor], Tensor]] = {}
    while (name := orders.recv()) is not None:
        transform = transforms.setdefault(name, torchvision_v2(name))
        start = time.process_time()
        for row in rows:
            out[row] = transform(images[row])
        orders.send(time.process_time() - start)


class Processes:
    """torchvision in one process per core, each with its share of every batch."""

    def __init__(self, images: Tensor) -> None:
        context = multiprocessing.get_context("spawn")
        images.share_memory_()
        out = torch.empty(images.shape, dtype=torch.float32).share_memory_()
        self.pipes, self.workers = [], []
        for first in range(NUM_PROCESSES):
            mine, theirs = context.Pipe()
            rows = range(first, len(images), NUM_PROCESSES)
            worker = context.Process(target=work_on_samples, args=(images, out, rows, theirs), daemon=True)
            worker.start()
            self.pipes.append(mine)
            self.workers.append(worker)

    def __call__(self, name: str) -> float:
        """One batch. Returns: seconds that the processes spent on it, together."""
        for pipe in self.pipes:
            pipe.send(name)
        return sum(pipe.recv() for pipe in self.pipes)

    def stop(self) -> None:
        for pipe, worker in zip(self.pipes, self.workers, strict=True):
            pipe.send(None)
            worker.join()


def arms_of(
    names: Sequence[str], images: Tensor, device: torch.device, samples: Processes | None
) -> dict[str, dict[str, Callable[[], Any]]]:
    """For each policy, what each side does to the batch."""
    arms: dict[str, dict[str, Callable[[], Any]]] = {}
    for name in names:
        ours = kiln(name, device)
        mine: dict[str, Callable[[], Any]] = {"kiln": lambda ours=ours: ours(images)}
        if samples is not None:
            mine["torchvision"] = lambda name=name: samples(name)
        else:
            batchwise = torchvision_v2(name)
            mine["torchvision"] = lambda batchwise=batchwise: batchwise(images)
            try:
                chain = kornia_batch(name)
            except ImportError:
                chain = None
            if chain is not None:
                mine["kornia"] = lambda chain=chain: chain(images)
        arms[name] = mine
    return arms


PAUSE_SECONDS = 0.3
TURN_SECONDS = 0.3


def run_rounds(
    arms: dict[str, dict[str, Callable[[], Any]]], rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """Milliseconds per batch of every arm in every round, after a round that does not count."""
    rows = []
    for round_ in range(-1, rounds):
        for name, sides in arms.items():
            order = list(sides.items())
            for side, work in order[round_ % len(order) :] + order[: round_ % len(order)]:
                row = {"policy": name, "side": side, "round": round_, **turn(work, device)}
                if round_ >= 0:
                    rows.append(row)
    return rows


def turn(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Batches for a while, after a pause: threads of the side before go on spinning for a fifth of a second."""
    time.sleep(PAUSE_SECONDS)
    start, cpu, batches = time.perf_counter(), time.process_time(), 0
    while batches == 0 or time.perf_counter() - start < TURN_SECONDS:
        elsewhere = work()
        cpu -= elsewhere if isinstance(elsewhere, float) else 0.0
        if device.type == "cuda":
            torch.cuda.synchronize()
        batches += 1
    ms, cpu_ms = 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu)
    return {"ms_per_batch": ms / batches, "cpu_ms_per_batch": cpu_ms / batches, "batches": batches}


def times(rows: list[dict[str, Any]], name: str, side: str, what: str = "ms_per_batch") -> list[float]:
    """Of one side, in the order of the rounds."""
    return [row[what] for row in rows if (row["policy"], row["side"]) == (name, side)]


def ratios(rows: list[dict[str, Any]], name: str, side: str, what: str = "ms_per_batch") -> list[float]:
    """How many times as long a side took as Kiln, round by round."""
    return [a / b for a, b in zip(times(rows, name, side, what), times(rows, name, "kiln", what), strict=True)]


def show(rows: list[dict[str, Any]], title: str, batch_size: int) -> None:
    """One line for each policy and side."""
    lines = []
    for name, side in dict.fromkeys((row["policy"], row["side"]) for row in sorted(rows, key=lambda r: r["policy"])):
        mine, more = times(rows, name, side), ratios(rows, name, side)
        low, _, high = statistics.quantiles(more, n=4) if len(more) > 1 else (more[0],) * 3
        cpu = statistics.median(times(rows, name, side, "cpu_ms_per_batch"))
        cells = [f"{1000 * value / batch_size:.0f}" for value in (statistics.median(mine), min(mine), cpu)]
        cpu_ratio = statistics.median(ratios(rows, name, side, "cpu_ms_per_batch"))
        cells += [f"{statistics.median(more):.2f}", f"{low:.2f} .. {high:.2f}", f"{cpu_ratio:.2f}", str(len(mine))]
        lines.append((f"{name} {side}", *cells))
    columns = ("policy, side", "us/sample", "fastest", "cpu", "x kiln", "middle half", "x cpu", "n")
    record.show(title, columns, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write machine, versions, raw rows and claims here")
    parser.add_argument("--quick", action="store_true", help="prove in under a minute that the script works")
    parser.add_argument("--rounds", type=int, default=15, help="how often the arms take turns")
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES, metavar="NAME", help="only these")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=128)
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.set_num_threads(NUM_PROCESSES)
    # photographs are smooth: noise would make some operations slower than they are
    coarse = torch.rand(given.batch_size, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic").clamp_(0, 1).mul_(255)
    images = images.to(device=device, dtype=torch.uint8)
    samples = Processes(images) if device.type == "cpu" else None
    rows = run_rounds(arms_of(given.policies, images, device, samples), 2 if given.quick else given.rounds, device)
    if samples is not None:
        samples.stop()
    show(
        rows,
        f"batch {given.batch_size}, 224 px, {NUM_PROCESSES} cores, medians, kiln by {backend(device)}",
        given.batch_size,
    )
    claims = []
    for name, target in TARGETS.items() if device.type == "cpu" else ():
        if name not in given.policies:
            continue
        value = statistics.median(ratios(rows, name, "torchvision"))
        claims.append(
            record.Claim(f"{name}: torchvision's time, ratio to Kiln's", value, f">= {target}", value >= target)
        )
    status = record.finish(claims, rows, packages=PACKAGES, path=given.json)
    return 0 if given.quick else status


if __name__ == "__main__":
    sys.exit(main())
