"""Fine-tune with batches of two: BatchNorm keeps the running statistics that it brought along.

    python examples/frozen_batchnorm.py          # pip install scikit-learn

Tutorials call `eval()` on norm layers once, and the next `train()` undoes it; or they clear `requires_grad`, which stops
no statistic. Here `freeze(model, "statistics")` keeps them, and weights and biases of the norms go on being trained.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from kiln.models.freeze import freeze


def train(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int, lr: float, epochs: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for rows in [rows for _ in range(epochs) for rows in torch.randperm(len(images)).split(batch_size)]:
        model.train()  # as often as you like: what is frozen stays so
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model.eval()


def main(*, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images, old = images.float().reshape(-1, 1, 8, 8) / 16, labels < 5
    body = (nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
    trained = nn.Sequential(*body, nn.Flatten(), nn.Linear(512, 5))
    train(trained, images[old], labels[old], batch_size=32, lr=0.05, epochs=2)
    trained[-1], images, labels = nn.Linear(512, 5), images[~old], labels[~old] - 5

    frozen_model, free_model = copy.deepcopy(trained), copy.deepcopy(trained)
    frozen = freeze(frozen_model, "statistics")
    accuracies = {}
    for name, model in {"frozen": frozen_model, "free": free_model}.items():
        torch.manual_seed(seed)  # the same batches for both
        train(model, images[:100], labels[:100], batch_size=2, lr=1e-3, epochs=5)
        with torch.inference_mode():
            accuracies[name] = (model(images[100:]).argmax(1) == labels[100:]).float().mean().item()
    frozen.verify(frozen_model)

    shown = ", ".join(f"statistics {name} {accuracy:.1%}" for name, accuracy in accuracies.items())
    print(f"accuracy on {len(images) - 100} held-out digits: {shown}")
    return accuracies


if __name__ == "__main__":
    main()
