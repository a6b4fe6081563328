"""Are the probabilities true after training, and does the model say so when it does not know?

    python benchmarks/calibration.py cifar10.zip clothing.zip [--seeds N] [--json PATH] [--quick]

Claims: an overtrained model (CIFAR-10, 2,000 images, 30 epochs, no smoothing, no augmentation) is, after the temperature that
`kiln train` fits on validation, inside the band of calibrated models on the 10,000 test images, or has at most half its
ECE; no prediction changes. A model of 8 clothing classes tells photos of the other 2 from test photos of its own with an AUROC
above one half; and what it refuses makes it right more often among the answers that it gives.

How: whole calls of `kiln.train`, so the temperature is the one that ships. ECE by 15 bins of one width, by this project's code
and once more by torchmetrics' `calibration_error`, which must agree. Unfamiliarity (generalised entropy) and the highest
probability are both tried as scores for what is unknown; AUROC by scikit-learn.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import record
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

PACKAGES = ("torchkiln", "torch", "timm", "numpy", "scikit-learn", "torchmetrics")
UNKNOWN = 2
"""Clothing classes that are left out of training: the last ones by name."""


def unpacked(archive: Path, root: Path, *, splits: dict[str, str], most: dict[str, int]) -> Path:
    """Images of an archive as split/class/image, at most so many of each class of a split."""
    counts: dict[tuple[str, str], int] = {}
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(opened.namelist()):
            parts = name.split("/")
            if len(parts) < 3 or parts[-3] not in splits or not name.endswith((".jpg", ".jpeg", ".png")):
                continue
            split, label = splits[parts[-3]], parts[-2]
            counts[split, label] = counts.get((split, label), 0) + 1
            if counts[split, label] <= most.get(split, 1 << 30):
                path = root / split / label / parts[-1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(opened.read(name))
    return root


def trained(data: Path, folder: Path, *, settings: dict[str, Any], **named: Any) -> Any:
    import kiln
    from kiln.observe.progress import make

    return kiln.train(data, output=str(folder), overrides=settings, progress=make(quiet=True), **named)


def overtrained(data: Path, folder: Path, *, seed: int, epochs: int) -> dict[str, Any]:
    """ECE of a model on test before and after its temperature, and the band of calibrated models."""
    from kiln.metrics.classification import softmax
    from kiln.metrics.reliability import calibrated_band, calibration_error, equal_width
    from kiln.tasks.decision import Decision

    settings = {"augment.policy": "none", "loss.smoothing": 0.0, "training.eval_every": "100%", "data.cache": "memory"}
    run = trained(data, folder, settings=settings, model="kiln/small_cnn", img_size=32, epochs=epochs, seed=seed)
    kept = run.outputs()
    test, decision = kept.splits["test"], Decision.from_dict(kept.decision)
    row: dict[str, Any] = {"part": "overtrained", "seed": seed, "n": len(test.targets), "scale": decision.scale}
    answers = {}
    for when, logits in (("before", test.logits.astype(np.float64)), ("after", decision.calibrated(test.logits))):
        probabilities = softmax(logits)
        sure, answers[when] = probabilities.max(1), probabilities.argmax(1)
        right = answers[when] == test.targets
        bins = equal_width(sure)
        ours = calibration_error(bins, sure, right)
        theirs = multiclass_calibration_error(
            torch.from_numpy(probabilities), torch.from_numpy(test.targets), num_classes=10, n_bins=15
        )
        if abs(ours - float(theirs)) > 1e-4:
            raise AssertionError(f"ECE {ours} here, {float(theirs)} by torchmetrics")
        row[when] = {"ece": ours, "band": calibrated_band(bins, sure), "accuracy": float(right.mean())}
    row["changed"] = int((answers["before"] != answers["after"]).sum())
    return row


def unknown(archive: Path, folder: Path, *, seed: int, epochs: int, px: int) -> dict[str, Any]:
    """How well photos of classes that a model was never shown are told from those it knows."""
    import kiln
    from kiln.jobs.calibrate import Wanted, fit_decision
    from kiln.metrics.selective import Answered

    splits = {"train": "train", "validation": "val", "test": "test"}
    everything = unpacked(archive, folder / "clothing", splits=splits, most={})
    classes = sorted(path.name for path in (everything / "train").iterdir())
    strangers = classes[-UNKNOWN:]
    for split in splits.values():
        for label in strangers:
            place = folder / "strangers" / split
            place.mkdir(parents=True, exist_ok=True)
            (everything / split / label).rename(place / label)
    run = trained(everything, folder / "runs", settings={}, model="resnet18", img_size=px, epochs=epochs, seed=seed)
    predictor, kept = run.model(), run.outputs()
    paths = sorted((folder / "strangers" / "test").rglob("*.jpg"))
    rows = kiln.predict(run, [str(path) for path in paths])
    test, val = kept.splits["test"], kept.splits["val"]
    own = predictor.probabilities(test.logits)
    truth = np.r_[np.zeros(len(own)), np.ones(len(rows))]
    unlike = np.r_[predictor.decision.unfamiliarity(own), [row["unfamiliarity"] for row in rows]]
    doubt = 1 - np.r_[own.max(1), [row["probability"] for row in rows]]
    decision = fit_decision(predictor.task, val.logits, val.targets, Wanted(coverage=0.8), split="val")
    given = own.max(1) >= decision.least_probability
    strange = np.array([row["probability"] for row in rows]) >= decision.least_probability
    right = own.argmax(1) == test.targets
    return {
        "part": "unknown",
        "seed": seed,
        "strangers": strangers,
        "n_known": len(own),
        "n_unknown": len(rows),
        "auroc_unfamiliarity": float(roc_auc_score(truth, unlike)),
        "auroc_probability": float(roc_auc_score(truth, doubt)),
        "aurc": float(Answered(own.max(1), right).area()[0]),
        "accuracy": float(right.mean()),
        "wanted_coverage": 0.8,
        "coverage": float(given.mean()),
        "accuracy_of_answers": float(right[given].mean()),
        "strangers_answered": float(strange.mean()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("clothing", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--clothing-epochs", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs: to see that it runs")
    arguments = parser.parse_args()
    seeds = 1 if arguments.quick else arguments.seeds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["KILN_CACHE"] = str(folder / "cache")
        most = {"train": 240, "test": 50} if arguments.quick else {"train": 240, "test": 1000}
        data = unpacked(arguments.cifar10, folder / "cifar", splits={"train": "train", "test": "test"}, most=most)
        for seed in range(seeds):
            rows.append(
                overtrained(data, folder / "runs", seed=seed, epochs=4 if arguments.quick else arguments.epochs)
            )
            print(rows[-1], flush=True)
        epochs = 1 if arguments.quick else arguments.clothing_epochs
        rows.append(unknown(arguments.clothing, folder, seed=0, epochs=epochs, px=32 if arguments.quick else 64))
        print(rows[-1], flush=True)
    return conclude(rows, arguments)


def conclude(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> int:
    fitted = [row for row in rows if row["part"] == "overtrained"]
    lines = [
        (
            f"seed {row['seed']}",
            f"{row['before']['accuracy']:.3f}",
            f"{row['before']['ece']:.4f}",
            f"{row['after']['ece']:.4f}",
            "{:.4f} to {:.4f}".format(*row["after"]["band"]),
            f"{row['after']['ece'] / row['before']['ece']:.2f}",
            str(row["changed"]),
        )
        for row in fitted
    ]
    header = ("CIFAR-10", "accuracy", "ECE before", "after", "calibrated", "ratio", "predictions changed")
    record.show("an overtrained model, on test", header, lines)
    stranger = rows[-1]
    print(
        f"\nunknown {', '.join(stranger['strangers'])}: AUROC {stranger['auroc_unfamiliarity']:.3f} by unfamiliarity,"
    )
    print(
        f"{stranger['auroc_probability']:.3f} by probability; AURC {stranger['aurc']:.3f}; accuracy {stranger['accuracy']:.3f},"
    )
    print(
        f"{stranger['accuracy_of_answers']:.3f} of the {stranger['coverage']:.1%} answered; {stranger['strangers_answered']:.1%}"
    )
    print("of the unknown are answered")
    good = [row["after"]["ece"] <= max(row["after"]["band"][1], row["before"]["ece"] / 2) for row in fitted]
    changed = sum(row["changed"] for row in fitted)
    gain = stranger["accuracy_of_answers"] - stranger["accuracy"]
    claims = [
        record.Claim(
            "seeds calibrated: inside the band, or half the ECE", sum(good), f"{len(good)} of them", all(good)
        ),
        record.Claim("predictions changed by a temperature", changed, "0", changed == 0),
        record.Claim(
            "AUROC of unfamiliarity",
            stranger["auroc_unfamiliarity"],
            "above 0.5",
            stranger["auroc_unfamiliarity"] > 0.5,
        ),
        record.Claim("accuracy gained by answering 80 %", gain, "above 0", gain > 0),
    ]
    return record.finish(claims, rows, packages=PACKAGES, path=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
