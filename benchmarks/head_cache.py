"""Twenty epochs of a head on kept features, against the same epochs through the frozen network.

    python benchmarks/head_cache.py [--json PATH] [--quick] [--all] [--rounds N] [--images N] [--px N] [--photos ARCHIVE.zip]

Claims, resnet18, fp32, no augmentation: the epochs of `finetune.mode=head`, evaluations included, take at most a twelfth of the
time that they take with `finetune.cache_features=off`; the two models' logits on the same images differ by at most 1e-4. Not
claimed, but measured: the whole call of `kiln.train`, from the first line to the report on the best model; and with `--all`
`light` augmentation in four views, and features that an earlier run left on the disk.

How: whole calls of `kiln.train`. The epochs are the call's loop less the time in which checkpoints (45 MB) and the best model are
written. With the first and last second of a call these are what is no training: below some thousand images they decide about
the whole. Both arms read images that are decoded already (a run before the first round sees to that); features are removed
before each call but those of the last arm. Arms take turns, round after round; a ratio is taken within a round. The network
has random weights, which costs the same and needs no download.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import record
import torch
from data_work import encode, middle, photos_of, synthetic, write_folder

PACKAGES = ("torch", "timm", "numpy", "Pillow", "torchkiln")
EPOCHS = 20
PLAIN = {"augment.policy": "none"}
LIGHT = {"augment.policy": "light", "finetune.views": 4}
ARMS: dict[str, dict[str, Any]] = {
    "no augmentation, through the network": {**PLAIN, "finetune.cache_features": "off"},
    "no augmentation, features kept": {**PLAIN, "finetune.cache_features": "on"},
    "light in 4 views, through the network": {**LIGHT, "finetune.cache_features": "off"},
    "light in 4 views, features kept": {**LIGHT, "finetune.cache_features": "on"},
    "no augmentation, features on the disk": {**PLAIN, "finetune.cache_features": "on"},
}
PAIRS = ((1, 0), (3, 2), (4, 0))
LAST = list(ARMS)[-1]


def train(data: Path, output: Path, settings: dict[str, Any], *, epochs: int, px: int) -> Any:
    import kiln
    from kiln.observe.progress import make

    fixed = {"finetune.mode": "head", "finetune.random_weights": True, "training.precision": "fp32"}
    return kiln.train(
        data,
        model="resnet18",
        img_size=px,
        epochs=epochs,
        seed=0,
        output=output,
        overrides={**fixed, **settings},
        progress=make(quiet=True),
    )


def forget_features() -> None:
    """Remove kept features, and leave decoded images."""
    from kiln.data import room

    for entry in room.entries():
        if list(entry.folder.glob("view-*")):
            shutil.rmtree(entry.folder)


def logits_of(run: Any, files: list[bytes], px: int) -> np.ndarray:
    """What a run's model says of some images, in float32."""
    from kiln.runtimes import load

    predictor = load(run.path, device="cpu")
    images = np.stack([predictor.contract.apply(file) for file in files]).transpose(0, 3, 1, 2)
    return predictor.runtime.logits(np.ascontiguousarray(images))


class Stopwatch:
    """Adds up the time within some methods, wherever they are called from."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, owner: type, method: str, name: str) -> None:
        """Replace a method by one that is timed."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

        setattr(owner, method, timed)


def watch_training() -> Stopwatch:
    from kiln.jobs.train import _Session
    from kiln.jobs.training.save import Saver

    watch = Stopwatch()
    watch.around(_Session, "_loop", "loop")
    watch.around(Saver, "__call__", "saving")
    return watch


def measure(arguments: argparse.Namespace, work: Path) -> tuple[list[dict[str, Any]], float]:
    """Seconds of each call, and how far the logits of the first two arms lie apart."""
    if arguments.photos is None:
        files = [encode(synthetic(number, 240, 320), 90) for number in range(arguments.images)]
    else:
        files = photos_of(arguments.photos, arguments.images)
    write_folder(work / "images", files)
    os.environ["KILN_CACHE"] = str(work / "cache")
    names = list(ARMS) if arguments.all else list(ARMS)[:2]
    for name in names:  # decodes
        train(
            work / "images", work / "runs", {**ARMS[name], "finetune.cache_features": "off"}, epochs=2, px=arguments.px
        )
    rows: list[dict[str, Any]] = []
    runs: dict[str, Any] = {}
    watch = watch_training()
    for number in range(arguments.rounds):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            if name == LAST:
                train(work / "images", work / "runs", ARMS[name], epochs=2, px=arguments.px)
            else:
                forget_features()
            watch.seconds, begun = {}, time.perf_counter()
            runs[name] = train(work / "images", work / "runs", ARMS[name], epochs=arguments.epochs, px=arguments.px)
            whole, epochs = time.perf_counter() - begun, watch.seconds["loop"] - watch.seconds["saving"]
            rows.append({"arm": name, "round": number, "whole": whole, "epochs": epochs, **watch.seconds})
            print(f"round {number + 1}  {name}: epochs {epochs:.2f} s, whole {whole:.2f} s", flush=True)
    through, kept = (logits_of(runs[name], files[:32], arguments.px) for name in names[:2])
    return rows, float(np.abs(through - kept).max())


def of(rows: list[dict[str, Any]], arm: str, what: str) -> list[float]:
    """An arm's seconds by round."""
    return [row[what] for row in sorted(rows, key=lambda row: row["round"]) if row["arm"] == arm]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--photos", type=Path, help="a zip of JPEG files; made images without it")
    arguments = parser.parse_args()
    arguments.epochs = EPOCHS
    if arguments.quick:
        arguments.images, arguments.rounds, arguments.epochs = 32, 1, 2
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        rows, apart = measure(arguments, Path(folder))
    kind = "photos" if arguments.photos else "made images"
    title = f"{arguments.epochs} epochs, {arguments.images:,} {kind} at {arguments.px} px, {torch.get_num_threads()} threads"
    claimed, names = 0.0, list(ARMS)
    for what in ("epochs", "whole"):
        table = []
        for kept, through in PAIRS if arguments.all else PAIRS[:1]:
            slow, fast = of(rows, names[through], what), of(rows, names[kept], what)
            by_round = middle([one / other for one, other in zip(slow, fast, strict=True)])
            claimed = by_round[0] if what == "epochs" and kept == 1 else claimed
            seconds = (f"{middle(slow)[0]:.2f}", f"{middle(fast)[0]:.2f}")
            times = (f"{by_round[0]:.1f}", f"{by_round[1]:.1f} to {by_round[2]:.1f}")
            table.append((names[kept], *seconds, *times, str(len(slow))))
        header = ("", "through the network, s", "this, s", "times as fast", "middle half", "n")
        record.show(f"{title}: {what}", header, table)
    claims = [
        record.Claim(
            f"{arguments.epochs} epochs, {names[1]}, over through the network", claimed, ">= 12", claimed >= 12
        ),
        record.Claim("largest difference of logits", apart, "<= 1e-4", apart <= 1e-4),
    ]
    about = {"images": arguments.images, "px": arguments.px, "pictures": kind, "threads": torch.get_num_threads()}
    return record.finish(claims, [{**row, **about} for row in rows], packages=PACKAGES, path=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
