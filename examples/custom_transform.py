"""A transform of one's own, on images in training only, that repeats.

    python examples/custom_transform.py          # pip install scikit-learn

Tutorials draw from a global generator, which workers share or copy, transform validation too, and normalise in two places.
Here a function with a parameter `rng` gets a generator that follows from seed, epoch and image: any run repeats, bit for bit.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import kiln


def scratches(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw a dark line across the image; half of the time lay it on its side first."""
    pixels = np.asarray(image).copy()
    pixels[rng.integers(len(pixels))] = 0
    return Image.fromarray(pixels if rng.random() < 0.5 else pixels.swapaxes(0, 1).copy())


def main(**settings: Any) -> kiln.Run:
    images, labels = load_digits(return_X_y=True)
    pixels = (images * 15).astype(np.uint8).reshape(-1, 8, 8, 1)
    transform = f"{Path(__file__).resolve()}:scratches"
    recipe = {"transform": transform, "policy": "none", "model": "kiln/small_cnn", "kwargs": {"widths": [8, 16]}}
    run = kiln.train((pixels, labels), **{**recipe, "epochs": 4, "lr": 1e-2, "seed": 0, **settings})
    accuracy = run.summary()["metrics"]["val"]["accuracy"]
    print(
        f"validation accuracy, without scratches: {accuracy['value']:.1%} of {run.resolved['facts']['samples']['val']}"
    )
    return run


if __name__ == "__main__":
    main()
