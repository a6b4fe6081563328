"""Are wrong labels found? 5 % of the labels of 10,000 CIFAR-10 images are changed; out-of-fold predictions must point at them.

    python benchmarks/label_noise.py cifar10.zip [--folder FOLDER] [--json PATH] [--quick]

Claims: of the 500 samples that are ranked first (5 %), at least 0.6 have a changed label; and no fewer than among the first 500
of cleanlab's ranking of the same probabilities (`find_label_issues`, `get_label_quality_scores`, each at its own defaults).

How: 1,000 images of each class are drawn from the training images; 500 of all have their label replaced by another class, all
others alike. `kiln train --folds 5` trains a small network without each fold for a few epochs, `kiln labels` ranks. Both
rankings see the probabilities that the run left. The last rows are other scores of the same probabilities, for comparison.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import record

import kiln
from kiln.data.checks.label_errors import find_label_errors, normalized_margin, self_confidence

PACKAGES = ("torchkiln", "torch", "cleanlab", "numpy")
PER_CLASS, SHARE, FOLDS = 1000, 0.05, 5
SETTINGS: dict[str, Any] = {
    "model": "kiln/small_cnn",
    "kwargs": {"widths": [16, 32, 64, 128]},
    "img_size": 32,
    "epochs": 16,
    "batch_size": 64,
    "opt": "muon",
    "sched": "one_cycle",
}


def plant(archive: Path, root: Path, *, per_class: int, seed: int) -> tuple[Path, dict[str, str]]:
    """Images as files, and a table of labels of which some are wrong; the true class of each file by its name."""
    draw = np.random.default_rng(seed)
    with zipfile.ZipFile(archive) as opened:
        found: dict[str, list[str]] = {}
        for name in sorted(opened.namelist()):
            if "train" in name.split("/")[:-2] and name.endswith((".jpg", ".png")):
                found.setdefault(name.split("/")[-2], []).append(name)
        true = {}
        for label, names in sorted(found.items()):
            for place in sorted(draw.choice(len(names), per_class, replace=False)):
                name = f"{label}-{Path(names[place]).name}"
                if not (root / name).exists():  # a run that is gone on with asks for the same files, times included
                    (root / name).write_bytes(opened.read(names[place]))
                true[name] = label
    classes = sorted(found)
    wrong = set(draw.choice(len(true), round(SHARE * len(true)), replace=False).tolist())
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for number, (name, label) in enumerate(true.items()):
            others = [other for other in classes if other != label]
            writer.writerow([name, others[draw.integers(len(others))] if number in wrong else label])
    return root / "labels.csv", true


def rankings(probabilities: Any, labels: Any) -> dict[str, Any]:
    """Indices of samples, the most suspicious first, by method."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        issues = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
        quality = get_label_quality_scores(labels, probabilities)
    return {
        "kiln labels": find_label_errors(probabilities, labels).order,
        "cleanlab find_label_issues": issues,
        "cleanlab get_label_quality_scores": np.argsort(quality, kind="stable"),
        "self-confidence of all": np.argsort(self_confidence(probabilities, labels), kind="stable"),
        "normalised margin of all": np.argsort(normalized_margin(probabilities, labels), kind="stable"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="cifar10.zip: cifar10/train/CLASS/NUMBER.jpg")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep images and run there, and go on with a run that is there")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="300 images, to see that the script works; claims nothing")
    asked = parser.parse_args()
    quick = {"epochs": 2, "batch_size": 32} if asked.quick else {}
    with tempfile.TemporaryDirectory() as folder:
        root = (asked.folder or Path(folder)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        table, true = plant(asked.archive, root, per_class=30 if asked.quick else PER_CLASS, seed=asked.seed)
        place = {"output": str(root / "runs"), "resume": "auto"}
        run = kiln.train(table, folds=FOLDS, **place, **{**SETTINGS, **quick})
        kept = run.outputs()
        spread = run.result["spread"]["accuracy"]
    probabilities, part = kept.probabilities("oof"), kept.splits["oof"]
    truth = np.array([kept.classes.index(true[key]) for key in part.keys])
    wrong = truth != part.targets
    accuracy = float((probabilities.argmax(axis=1) == truth).mean())
    top = round(SHARE * len(wrong))
    rows = []
    for method, order in rankings(probabilities, part.targets).items():
        first = wrong[order[:top]]
        rows.append(
            {
                "method": method,
                "precision": float(first.sum() / top),
                "first_100": float(wrong[order[: top // 5]].mean()),
                "listed": len(order),
                "found": float(wrong[order].sum() / wrong.sum()),
            }
        )
    record.show(
        f"{len(wrong):,} images, {wrong.sum()} wrong labels, out of fold {accuracy:.1%} right of the true ones "
        f"({FOLDS} folds, standard deviation {100 * spread['std']:.1f} points); share of changed labels among the first",
        ("ranking", f"{top}", f"{top // 5}", "listed", "of the changed"),
        [
            (
                row["method"],
                f"{row['precision']:.3f}",
                f"{row['first_100']:.3f}",
                f"{row['listed']:,}",
                f"{row['found']:.3f}",
            )
            for row in rows
        ],
    )
    ours, theirs = rows[0]["precision"], max(row["precision"] for row in rows[1:3])
    claims = [
        record.Claim("changed labels among the first 5 %", ours, ">= 0.6", ours >= 0.6),
        record.Claim("that minus the better of cleanlab's two", ours - theirs, ">= 0", ours >= theirs),
    ]
    about = {"wrong": int(wrong.sum()), "accuracy": accuracy, "seed": asked.seed, "settings": SETTINGS}
    return record.finish([] if asked.quick else claims, [about, *rows], packages=PACKAGES, path=asked.json)


if __name__ == "__main__":
    sys.exit(main())
