"""What a training loop costs beyond the plainest correct one, for Kiln and its peers, in one process on the same work.

    python benchmarks/loop_overhead.py [--json PATH] [--quick] [--rounds N] [--threads N] [--instructions]

Claims: on a model whose plain step takes about 1.5 ms, Kiln's `fit` adds at most 60 us to a step, and less than any peer
here; on resnet18 at 224 px it adds at most 2 %.

How: an arm trains a fresh model for a slice of steps and notes the time at the end of each. The arms take turns, round
after round, in an order that moves on by one each time, so that all meet the same noise. What an arm adds is the median
over rounds of its step time less that of the plain loop in the same round. A slice begins with steps that do not count.
Every arm must report the losses of the plain loop: that is how we know that it did the same work.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import record
import torch
from loop_arms import Arm, Work, kiln, plain, resnet18, tiny_net
from loop_peers import importable
from torch import Tensor

WARM_UP_STEPS = 10
MAX_LOSS_DIFFERENCE = 1e-3
PACKAGES = ("torch", "timm", "fastai", "lightning", "transformers", "ultralytics", "mosaicml")

TINY = Work("tiny", tiny_net, batch_size=16, px=16, threads=1)
LARGE = Work("resnet18", resnet18, batch_size=4, px=224, threads=os.cpu_count() or 1)


@dataclass(frozen=True)
class Slice:
    """What one arm did in its turn of one round.

    `wall_us` is the mean time of a step, `fastest_us` that of the fastest, `cpu_us` the mean processor time.
    """

    work: str
    arm: str
    round: int
    steps: int
    wall_us: float
    fastest_us: float
    cpu_us: float
    losses: list[float]


def run_slice(arm: Arm, work: Work, num_steps: int, *, name: str, round_: int, warm_up_steps: int) -> Slice:
    """Let an arm train; time its last `num_steps` steps."""
    torch.set_num_threads(work.threads)  # some peers change it
    gc.collect()
    losses: list[Tensor] = []
    ends: list[float] = []
    cpu: list[float] = []

    def on_step(loss: Tensor) -> None:
        losses.append(loss)
        if len(losses) in (warm_up_steps, warm_up_steps + num_steps):
            cpu.append(time.process_time())
        ends.append(time.perf_counter())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arm(work, warm_up_steps + num_steps, on_step)
    durations = [after - before for before, after in zip(ends[warm_up_steps - 1 :], ends[warm_up_steps:], strict=False)]
    return Slice(
        work=work.name,
        arm=name,
        round=round_,
        steps=len(durations),
        wall_us=statistics.fmean(durations) * 1e6,
        fastest_us=min(durations) * 1e6,
        cpu_us=(cpu[1] - cpu[0]) / num_steps * 1e6,
        losses=[float(loss) for loss in losses],
    )


def run_rounds(
    work: Work, arms: dict[str, Arm], *, rounds: int, num_steps: int, warm_up_steps: int = WARM_UP_STEPS
) -> list[Slice]:
    """All arms in turn, for a number of rounds, after one round that does not count."""
    names = list(arms)
    slices: list[Slice] = []
    for round_ in range(-1, rounds):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            settings: dict[str, Any] = {"name": name, "round_": round_, "warm_up_steps": warm_up_steps}
            slices.append(run_slice(arms[name], work, num_steps, **settings))
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    check_same_work(slices)
    return [one for one in slices if one.round >= 0]


def check_same_work(slices: list[Slice]) -> None:
    """Stop unless every arm saw the losses of the plain loop."""
    expected = next(one.losses for one in slices if one.arm == "plain")
    for one in slices:
        differences = [abs(a - b) for a, b in zip(one.losses, expected, strict=True)]
        if not max(differences) <= MAX_LOSS_DIFFERENCE:
            raise SystemExit(f"{one.arm} did other work than the plain loop: losses differ by {max(differences):.3g}")


def paired(slices: list[Slice], arm: str, what: str) -> list[float]:
    """What an arm took more than the plain loop, round by round."""
    base = {one.round: getattr(one, what) for one in slices if one.arm == "plain"}
    return [getattr(one, what) - base[one.round] for one in slices if one.arm == arm]


def middle_half(values: list[float]) -> str:
    """The quartiles, as the spread."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{low:+.0f} .. {high:+.0f}"


def show(work: Work, slices: list[Slice]) -> None:
    """One line for each arm."""
    rows = []
    base = statistics.median(one.wall_us for one in slices if one.arm == "plain")
    for arm in dict.fromkeys(one.arm for one in sorted(slices, key=lambda one: one.arm != "plain")):
        mine = [one for one in slices if one.arm == arm]
        wall, cpu = paired(slices, arm, "wall_us"), paired(slices, arm, "cpu_us")
        rows.append(
            (
                arm,
                f"{statistics.median(one.wall_us for one in mine):.0f}",
                f"{1 + statistics.median(wall) / base:.3f}",
                f"{statistics.median(wall):+.0f}",
                middle_half(wall),
                f"{statistics.median(cpu):+.0f}",
                f"{min(one.fastest_us for one in mine):.0f}",
                f"{len(mine)} x {mine[0].steps}",
            )
        )
    header = ("arm", "us/step", "ratio", "extra us", "middle half", "extra cpu us", "fastest", "n x steps")
    title = f"{work.name}: batch {work.batch_size}, {work.px} px, {work.threads} threads, fused AdamW, fp32, medians"
    record.show(title, header, rows)


def claims_of(tiny: list[Slice], large: list[Slice], peers: list[str]) -> list[record.Claim]:
    """The bars that this script stands for."""
    extra = statistics.median(paired(tiny, "kiln", "wall_us"))
    base = statistics.median(one.wall_us for one in large if one.arm == "plain")
    ratio = 1 + statistics.median(paired(large, "kiln", "wall_us")) / base
    claims = [
        record.Claim("Kiln's extra time per step on the tiny model, us", extra, "<= 60", extra <= 60),
        record.Claim("Kiln's step time on resnet18 at 224 px, ratio to plain", ratio, "<= 1.02", ratio <= 1.02),
    ]
    for peer in peers:
        more = statistics.median(paired(tiny, peer, "wall_us"))
        claims.append(record.Claim(f"extra time of {peer} on the tiny model, us", more, f"> {extra:.0f}", more > extra))
    return claims


def count_instructions(arm: str, num_steps: int = 20) -> float:
    """Instructions per step of an arm on the tiny model, counted by valgrind: slow, and the same on a busy machine."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = [
            "valgrind",
            "--tool=callgrind",
            "--collect-atstart=no",
            f"--callgrind-out-file={out}",
            sys.executable,
        ]
        subprocess.run([*command, __file__, "--count", arm, str(num_steps)], check=True, capture_output=True)
        totals = next(line for line in out.read_text().splitlines() if line.startswith(("totals:", "summary:")))
    return int(totals.split()[1]) / num_steps


def run_counted(arm: str, num_steps: int) -> None:
    """Inside valgrind: collect between the end of the warm-up and the last step."""
    steps_done = 0

    def on_step(_: Tensor) -> None:
        nonlocal steps_done
        steps_done += 1
        if steps_done in (WARM_UP_STEPS, WARM_UP_STEPS + num_steps):
            torch._C._valgrind_toggle()

    torch.set_num_threads(1)
    gc.disable()
    {"plain": plain, "kiln": kiln}[arm](TINY, WARM_UP_STEPS + num_steps, on_step)
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write machine, versions, raw rows and claims here")
    parser.add_argument("--quick", action="store_true", help="prove in under a minute that the script works")
    parser.add_argument("--rounds", type=int, default=40, help="how often the arms take turns")
    parser.add_argument("--threads", type=int, default=LARGE.threads, help="for resnet18; the tiny model has one")
    parser.add_argument("--instructions", action="store_true", help="also count instructions (valgrind, minutes)")
    parser.add_argument("--count", nargs=2, metavar=("ARM", "STEPS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count:
        run_counted(given.count[0], int(given.count[1]))
    peers, missing = importable()
    for name, reason in missing.items():
        print(f"without {name}: {reason}")
    ours: dict[str, Arm] = {"plain": plain, "kiln": kiln}
    rounds = 2 if given.quick else given.rounds
    tiny = run_rounds(TINY, {**ours, **peers}, rounds=rounds, num_steps=25)
    work = replace(LARGE, threads=given.threads)
    large = run_rounds(work, ours, rounds=1 if given.quick else given.rounds, num_steps=2, warm_up_steps=1)
    show(TINY, tiny)
    show(work, large)
    rows: list[dict[str, Any]] = [{**vars(one), "losses": one.losses[-1:]} for one in [*tiny, *large]]
    claims = claims_of(tiny, large, list(peers))
    if given.instructions:
        counts = {arm: count_instructions(arm) for arm in ours}
        rows += [{"work": TINY.name, "arm": arm, "instructions_per_step": count} for arm, count in counts.items()]
        more = counts["kiln"] / counts["plain"]
        name = "Kiln's instructions per step on the tiny model, ratio"
        claims.append(record.Claim(name, more, "<= 1.04 (60 us of 1.5 ms)", more <= 1.04))
    status = record.finish(claims, rows, packages=PACKAGES, path=given.json)
    return 0 if given.quick else status  # so few rounds prove nothing


if __name__ == "__main__":
    sys.exit(main())
