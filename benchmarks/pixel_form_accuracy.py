"""Does training from reduced copies cost accuracy? The same runs from the files (`original`) and from copies (`stored`).

    python benchmarks/pixel_form_accuracy.py ARCHIVE.zip [--seeds N] [--epochs N] [--model NAME] [--px N] [--json PATH]

Claim: over all seeds, the test samples that one is right about and the other is not differ by at most 0.5 points; the
interval of that difference is from a bootstrap over test samples. Where images have the model's size already there is no
copy to reduce, and both runs must leave the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import record

PACKAGES = ("torchkiln", "torch", "timm", "numpy", "Pillow")
MOST_POINTS = 0.5


def train(arguments: argparse.Namespace, form: str, seed: int, folder: str) -> dict[str, Any]:
    """One run: which test samples it is right about, and a hash of its weights."""
    from safetensors.torch import load_file

    import kiln

    run = kiln.train(
        arguments.archive,
        model=arguments.model,
        img_size=arguments.px,
        epochs=arguments.epochs,
        seed=seed,
        output=folder,
        overrides={"data.pixel_form": form, "training.batch_size": arguments.batch_size},
    )
    rows = run.predictions()
    tensors = load_file(run.model_file)
    weights = hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()
    right = {row["key"]: int(row["label"] == row["predicted"]) for row in rows}
    return {"form": form, "seed": seed, "weights": weights, "right": right}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="labelled images with a test split")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--px", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    from kiln.metrics.intervals import bootstrap_mean

    rows: list[Any] = []
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            original, stored = (train(arguments, form, seed, folder) for form in ("original", "stored"))
            keys = sorted(original["right"])
            one, other = (np.array([run["right"][key] for key in keys]) for run in (original, stored))
            differences.append(other - one)
            rows.append(
                {
                    "seed": seed,
                    "n": len(keys),
                    "original": float(one.mean()),
                    "stored": float(other.mean()),
                    "only_stored_right": int((other > one).sum()),
                    "only_original_right": int((other < one).sum()),
                    "same_weights": original["weights"] == stored["weights"],
                }
            )
            print(rows[-1], flush=True)
    paired = np.mean(differences, axis=0)
    low, high = bootstrap_mean(100.0 * paired)
    points = 100.0 * float(paired.mean())
    record.show(
        f"{arguments.archive.name}: {arguments.model}, {arguments.px} px, {arguments.epochs} epochs; test accuracy",
        ("seed", "original", "stored", "n", "same weights"),
        [
            (str(r["seed"]), f"{r['original']:.4f}", f"{r['stored']:.4f}", str(r["n"]), str(r["same_weights"]))
            for r in rows
        ],
    )
    print(f"stored - original: {points:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} over test samples")
    claims = [record.Claim("stored - original, points", points, f"within {MOST_POINTS}", abs(points) <= MOST_POINTS)]
    summary = {"difference_points": points, "interval": [low, high]}
    return record.finish(claims, [*rows, summary], packages=PACKAGES, path=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
