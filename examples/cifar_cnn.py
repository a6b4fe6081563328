"""The small convolutional network of every tutorial, on CIFAR-10.

    python examples/cifar_cnn.py cifar-10-batches-bin/     # the "binary version", unpacked; without it, digits in colour

Tutorials measure on the pictures they choose by, forget `eval()`, and print an accuracy without saying how sure it is.
Here training chooses on a part of the training set, and the test set is measured once, with its 95 % interval.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kiln


def cnn(num_classes: int) -> nn.Module:
    """Two convolutions, three linear layers: 32 px, 3 channels."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes)),
    )


def digits() -> dict[str, TensorDataset]:
    """scikit-learn's digits in the form of CIFAR-10: ten classes, 32 px, three channels."""
    from sklearn.datasets import load_digits

    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = nn.functional.interpolate(images.float().reshape(-1, 1, 8, 8) * 15, size=32).byte().repeat(1, 3, 1, 1)
    return {"train": TensorDataset(images[:1200], labels[:1200]), "test": TensorDataset(images[1200:], labels[1200:])}


def main(data: str | None = None, **settings: Any) -> kiln.Run:
    recipe = {"model": f"{Path(__file__).resolve()}:cnn", "img_size": 32, "epochs": 10, "lr": 3e-3, "crop": "padded"}
    run = kiln.train(data or digits(), **{**recipe, "hflip": 0.5 if data else 0.0, "seed": 0, **settings})
    accuracy = run.summary()["metrics"]["test"]["accuracy"]
    print(f"test accuracy {accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})")
    return run


if __name__ == "__main__":
    main(*sys.argv[1:2])
