"""Freeze a trained backbone and give it a new head: digits 0 to 4 first, then 5 to 9 from few images.

    python examples/replace_head.py          # pip install scikit-learn

Tutorials clear `requires_grad` and believe it frozen: BatchNorm goes on drifting, and `train()` undoes their `eval()`.
Here `freeze` holds the backbone in evaluation mode through every `train()`, and `verify` proves that no byte has moved.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from kiln.models.freeze import freeze
from kiln.models.surgery import replace_head_


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()


def main(*, seed: int = 0) -> float:
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images, old = images.float().reshape(-1, 1, 8, 8) / 16, labels < 5
    body = (nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    model = nn.Sequential(*body, nn.Linear(512, 5))
    train(model, images[old], labels[old], epochs=5)

    replace_head_(model, "5", num_classes=5)  # as wide as its inputs ask for
    frozen = freeze(model, "backbone")
    few = torch.nonzero(~old).flatten()[:100]
    train(model, images[few], labels[few] - 5, epochs=20)
    frozen.verify(model)

    rest = torch.nonzero(~old).flatten()[100:]
    with torch.inference_mode():
        accuracy = (model.eval()(images[rest]).argmax(1) == labels[rest] - 5).float().mean().item()
    print(f"{frozen.num_trainable:,} of {frozen.num_trainable + frozen.num_frozen:,} trained: accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
