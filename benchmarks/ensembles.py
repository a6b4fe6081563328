"""Models put together: soups, an ensemble of folds, views at test time; on validation by construction, on test as measured.

    python benchmarks/ensembles.py cifar10.zip [--json PATH] [--quick]

Claims: on validation no soup by `greedy` and no ensemble is below its best member, in the metric that was asked (accuracy).
On test each gain over the best member is stated with its paired 95 % interval (Tango's); what it should be is not claimed,
but for one thing: the ensemble of five folds is above its best member, beyond the interval.

How: CIFAR-10 as JPEG files, 5,000 images to train, 1,000 to validate, 5,000 to test, classes even. `kiln/small_cnn` at 32 px
without padding or cropping beyond what `light` does. For the soups one model is trained from scratch, then fine-tuned five
times, with other seeds and rates. For the folds five models are trained from scratch, each without a fifth of the 5,000;
the 1,000 that none of them saw choose the weights. Views: the pretrained model and its mirror images, chosen on nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import record

PACKAGES = ("torch", "numpy", "Pillow", "torchkiln")
RATES = (0.0005, 0.001, 0.002, 0.003, 0.004)


def unpack(archive: Path, folder: Path, *, sizes: dict[str, int]) -> Path:
    """`SPLIT/CLASS/FILE` with so many images: test from the archive's test, the others from its train."""
    left = {("test" if split == "test" else "train", split): size for split, size in sizes.items()}
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.lower().endswith((".jpg", ".png")))
        classes = len({name.split("/")[-2] for name in names})
        taken: Counter[tuple[str, str]] = Counter()
        for name in names:
            side, label = name.split("/")[-3:-1]
            for (origin, split), size in left.items():
                if origin == side and taken[split, label] < size // classes:
                    taken[split, label] += 1
                    target = folder / split / label / Path(name).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(opened.read(name))
                    break
    return folder


def train(data: Path, output: Path, name: str, **settings: Any) -> Any:
    """One run of the small network, without a word."""
    import kiln
    from kiln.observe.progress import make

    fixed = {"model": "kiln/small_cnn", "img_size": 32, "batch_size": 64, "device": "cpu"}
    print(f"training {name}", file=sys.stderr)
    return kiln.train(
        data,
        output=str(output),
        name=name,
        overrides={"augment.policy": "light"},
        progress=make(quiet=True),
        **fixed,
        **settings,
    )


def row_of(what: str, found: dict[str, Any]) -> dict[str, Any]:
    """What a soup or an ensemble reached, beside its best member."""
    name = found["metric"]
    return {
        "what": what,
        "taken": sum(one.get("taken", one.get("weight", 0) > 0) for one in found["members"]),
        "best_val": max(one["metrics"]["val"][name]["value"] for one in found["members"]),
        "val": found["metrics"]["val"][name]["value"],
        "test": found["metrics"]["test"][name]["value"],
        "gain": found["gain"],
    }


def row_of_views(run: Any, views: str) -> dict[str, Any]:
    """What a model reaches by looking several times, beside the same model looking once."""
    import kiln
    from kiln.jobs.together.candidates import Candidate, common_samples
    from kiln.measure.paired import compare_shares

    plain, viewed = (
        common_samples(
            [Candidate(run.path, run.model_file, kiln.load(run.path, views=name))] * 2, run.recipe.data.path
        )[0]
        for name in ("none", views)
    )
    task = kiln.load(run.path).task
    right = {
        (name, split): task.correct(task.probabilities(found[split].logits[0]), found[split].targets)
        for name, found in (("plain", plain), ("viewed", viewed))
        for split in ("val", "test")
    }
    gain = compare_shares(right["plain", "test"], right["viewed", "test"])
    return {
        "what": f"views: {views}",
        "taken": 1,
        "best_val": float(right["plain", "val"].mean()),
        "val": float(right["viewed", "val"].mean()),
        "test": float(right["viewed", "test"].mean()),
        "gain": {name: getattr(gain, name) for name in ("value", "low", "high", "p", "n")},
    }


def measure(archive: Path, folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Train everything, put it together, and say what each is worth."""
    import kiln

    sizes = {"train": 200, "val": 100, "test": 200} if quick else {"train": 5000, "val": 1000, "test": 5000}
    first, then = (1, 1) if quick else (8, 4)
    data = unpack(archive, folder / "data", sizes=sizes)
    pool = folder / "pool"
    pool.mkdir()
    for split in ("train", "test"):
        (pool / split).symlink_to(data / split)
    runs = folder / "runs"
    start = train(data, runs, "start", epochs=first, seed=0)
    rates = RATES[:2] if quick else RATES
    tuned = [
        train(data, runs, f"tuned-{seed}", weights=str(start.model_file), lr=rate, epochs=then, seed=seed)
        for seed, rate in enumerate(rates, 1)
    ]
    rows = []
    for method in ("greedy", "uniform"):
        found = kiln.soup(*tuned, output=folder / f"soup-{method}", method=method, device="cpu")
        rows.append(row_of(f"soup, {method}", found))
    rows.append(row_of("ensemble of the fine-tuned", kiln.ensemble(*tuned, output=folder / "of-tuned", device="cpu")))
    folds = train(pool, runs, "folds", epochs=first, seed=0, folds=2 if quick else 5)
    found = kiln.ensemble(folds, data=str(data), output=folder / "of-folds", device="cpu")
    rows.append({**row_of("ensemble of 5 folds", found), "kept": found["kept"], "candidates": found["candidates"]})
    rows += [row_of_views(start, "hflip"), row_of_views(start, "five_crop")]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="CIFAR-10 as images in train/CLASS and test/CLASS")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="prove that it works; the numbers mean nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KILN_CACHE"] = str(Path(folder) / "cache")
        rows = measure(arguments.archive, Path(folder), quick=arguments.quick)
    shown = [
        [
            row["what"],
            str(row["taken"]),
            f"{100 * row['best_val']:.1f}",
            f"{100 * row['val']:.1f}",
            f"{100 * row['test']:.2f}",
            f"{100 * row['gain']['value']:+.2f} ({100 * row['gain']['low']:+.2f} to {100 * row['gain']['high']:+.2f})",
        ]
        for row in rows
    ]
    header = ["accuracy in %", "members", "best, val", "val", "test", "gain on test over the best (95 %)"]
    record.show("Put together, against the best member", header, shown)
    by_name = {row["what"]: row for row in rows}
    claims = [
        record.Claim(
            f"{name}: validation above that of its best member, points", 100 * margin, "at least 0", margin >= 0
        )
        for name in ("soup, greedy", "ensemble of the fine-tuned", "ensemble of 5 folds")
        if np.isfinite(margin := by_name[name]["val"] - by_name[name]["best_val"])
    ]
    low = by_name["ensemble of 5 folds"]["gain"]["low"]
    claims.append(
        record.Claim("ensemble of 5 folds: lower end of the gain on test, points", 100 * low, "above 0", low > 0)
    )
    status = record.finish(claims, rows, packages=PACKAGES, path=arguments.json)
    return 0 if arguments.quick else status


if __name__ == "__main__":
    raise SystemExit(main())
