"""Does transfer help, and does it matter how? Pretrain on 5 classes of CIFAR-10, move to the other 5 with 50 images each.

    python benchmarks/transfer.py cifar10.zip [--seeds N] [--arms NAME ...] [--pretrained FILE] [--json PATH] [--quick]

Claims: in a short training, `staged` (the head fitted first, then everything at rates that fall with depth) beats training
from scratch by at least 8 points of test accuracy, and `full` at one rate, with intervals apart; at batches of 2, BatchNorm
with frozen statistics beats BatchNorm that follows them (in a deep network: `--model resnet18 --pretraining-epochs 10`).

How: one network is pretrained once. Each seed draws its own 50 training images a class, and 50 others to choose by. Every
arm tries the same five rates and keeps the one that is best on the images to choose by; what is reported is its accuracy on all
5,000 test images of those classes. The arms with batches of 2 take three epochs, which are 375 steps. An interval is that of the
mean over seeds (Student's t); the difference of two arms is paired by seed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import record
from scipy import stats

PACKAGES = ("torchkiln", "torch", "timm", "numpy", "scipy")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PER_CLASS = 50
SMALL_BATCH = {"training.batch_size": 2, "training.epochs": "3ep"}
ARMS: dict[str, dict[str, Any]] = {
    "scratch": {"model.weights": "none"},
    "full": {"finetune.mode": "full", "finetune.freeze_norm": "none"},
    "head": {"finetune.mode": "head"},
    "staged": {"finetune.mode": "staged"},
    "batch 2, statistics follow": {**SMALL_BATCH, "finetune.mode": "full", "finetune.freeze_norm": "none"},
    "batch 2, statistics frozen": {**SMALL_BATCH, "finetune.mode": "full", "finetune.freeze_norm": "statistics"},
}


def unpacked(archive: Path, root: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Every image as a file of its own; paths by class, of training and of test images."""
    found: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(opened.namelist()):
            split, label = name.split("/")[-3:-1] if name.count("/") > 1 else ("", "")
            if split in found and name.endswith((".jpg", ".png")):
                path = root / split / label / Path(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(opened.read(name))
                found[split].setdefault(label, []).append(path)
    return found["train"], found["test"]


def chosen(root: Path, parts: dict[str, dict[str, list[Path]]]) -> str:
    """A folder of links to some images, as split/class/image."""
    for split, classes in parts.items():
        for label, paths in classes.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for path in paths:
                (folder / path.name).symlink_to(path)
    return str(root)


def trained(data: str, folder: Path, name: str, settings: dict[str, Any], *, model: str, **changes: Any) -> Any:
    """One run, in the arms' common settings."""
    import kiln
    from kiln.observe.progress import make

    common = {"run.name": name, "training.eval_every": "100%", "data.cache": "memory", "run.report": False}
    return kiln.train(
        data,
        model=model,
        img_size=32,
        output=str(folder),
        progress=make(quiet=True),
        overrides={**common, **settings},
        **changes,
    )


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval over seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("-inf"), float("inf")
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="CIFAR-10 as images in train/CLASS and test/CLASS")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", default="kiln/small_cnn")
    parser.add_argument("--pretrained", type=Path, help="a model file of an earlier call, instead of pretraining")
    parser.add_argument("--keep", type=Path, help="where to copy the pretrained model")
    parser.add_argument("--pretraining-epochs", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument(
        "--quick", action="store_true", help="one seed, two rates, little pretraining: to see that it runs"
    )
    arguments = parser.parse_args()
    seeds, rates = (1, RATES[1:3]) if arguments.quick else (arguments.seeds, RATES)
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["KILN_CACHE"] = str(folder / "cache")
        train, test = unpacked(arguments.archive, folder / "all")
        classes = sorted(train)
        first, second = classes[::2], classes[1::2]
        share = 20 if arguments.quick else 1
        start = arguments.pretrained or pretrain(arguments, folder, {label: train[label] for label in first}, share)
        tested = chosen(folder / "tested", {"test": {label: test[label][::share] for label in second}})
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            drawn = {label: [train[label][i] for i in rng.permutation(len(train[label]))] for label in second}
            parts = {
                "train": {label: paths[:PER_CLASS] for label, paths in drawn.items()},
                "val": {label: paths[PER_CLASS : 2 * PER_CLASS] for label, paths in drawn.items()},
            }
            data = chosen(folder / f"seed{seed}", parts)
            for arm in arguments.arms:
                rows.append(
                    best_of_rates(
                        arm,
                        rates,
                        data,
                        tested,
                        folder,
                        start,
                        model=arguments.model,
                        seed=seed,
                        epochs=2 if arguments.quick else arguments.epochs,
                    )
                )
                print(f"seed {seed}  {arm:<28} test {rows[-1]['test']:.4f}  at {rows[-1]['lr']:g}", flush=True)
    return conclude(rows, arguments)


def pretrain(arguments: argparse.Namespace, folder: Path, images: dict[str, list[Path]], share: int) -> Path:
    """A model file of a network that has learnt the first classes; of every `share`-th image."""
    parts = {
        "train": {label: paths[500::share] for label, paths in images.items()},
        "val": {label: paths[:500:share] for label, paths in images.items()},
    }
    epochs = 1 if arguments.quick else arguments.pretraining_epochs
    settings = {"training.batch_size": 128, "optim.lr": 2e-3}
    run = trained(chosen(folder / "first", parts), folder, "pretrained", settings, model=arguments.model, epochs=epochs)
    print(f"pretrained on {', '.join(images)}: {run.result['metrics']['val']['accuracy']}", flush=True)
    if arguments.keep is not None:
        shutil.copy(run.model_file, arguments.keep)
    return run.model_file


def best_of_rates(
    arm: str,
    rates: tuple[float, ...],
    data: str,
    tested: str,
    folder: Path,
    start: Path,
    *,
    model: str,
    seed: int,
    epochs: int,
) -> dict[str, Any]:
    """Train an arm at each rate; the accuracy on test of the one that is best on validation."""
    import kiln

    tried = []
    for lr in rates:
        settings = {"model.weights": str(start), "training.batch_size": 32, "optim.lr": lr, **ARMS[arm]}
        name = f"{seed}-{arm}-{lr}".replace(" ", "-").replace(",", "")
        run = trained(data, folder / "runs", name, settings, model=model, epochs=epochs, seed=seed)
        tried.append((run.result["metrics"]["val"]["accuracy"]["value"], lr, run))
    val, lr, run = max(tried, key=lambda one: one[:2])
    reached = kiln.evaluate(run, tested)["accuracy"]
    curve = [(lr, val) for val, lr, _ in tried]
    return {"seed": seed, "arm": arm, "lr": lr, "val": val, "test": float(reached), "tried": curve}


def conclude(rows: list[Any], arguments: argparse.Namespace) -> int:
    """Tables, differences and claims."""
    by_arm = {arm: [row["test"] for row in rows if row["arm"] == arm] for arm in arguments.arms}
    lines = []
    for arm, values in by_arm.items():
        mean, low, high = interval(values)
        chosen = ", ".join(f"{row['lr']:g}" for row in rows if row["arm"] == arm)
        lines.append((arm, f"{100 * mean:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", str(len(values)), chosen))
    record.show("test accuracy, %", ("arm", "mean", "95 % interval", "seeds", "rate chosen"), lines)
    claims = []
    for better, worse, least in (
        ("staged", "scratch", 8.0),
        ("staged", "full", 0.0),
        ("batch 2, statistics frozen", "batch 2, statistics follow", 0.0),
    ):
        if better in by_arm and worse in by_arm:
            mean, low, high = interval([100 * (a - b) for a, b in zip(by_arm[better], by_arm[worse], strict=True)])
            print(f"{better} - {worse}: {mean:+.2f} points, {low:+.2f} to {high:+.2f}, paired by seed")
            target = f"at least {least:g}, interval above 0"
            claims.append(record.Claim(f"{better} - {worse}, points", mean, target, mean >= least and low > 0))
    return record.finish(claims, rows, packages=PACKAGES, path=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
