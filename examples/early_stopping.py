"""Early stopping as a function, in a loop of one's own: stop, and go back to the best.

    python examples/early_stopping.py          # pip install scikit-learn

Tutorials keep `model.state_dict()` as the best, which is no copy and goes on being trained, or choose it on the test split.
Here a `Tracker` counts on the validation split, the best is a copy, and the test split is looked at once, at the end.
"""

import copy
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import nn

from kiln.engine import Tracker


def train_until_no_better(
    model: nn.Module, epoch: Callable[[], None], validate: Callable[[], float], *, patience: int, max_epochs: int = 100
) -> Tracker:
    tracker = Tracker("loss", patience=patience, min_delta=1e-3, higher_is_better=False)
    best = copy.deepcopy(model.state_dict())
    for number in range(1, max_epochs + 1):
        epoch()
        if tracker.update(validate(), number):
            best = copy.deepcopy(model.state_dict())
        if tracker.exhausted:
            break
    model.load_state_dict(best)
    return tracker


def main(*, seed: int = 0) -> Tracker:
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    train, val, test = torch.randperm(len(images)).split([300, 300, len(images) - 600])
    images = images.float() / 16
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def epoch() -> None:
        for rows in train[torch.randperm(len(train))].split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()

    def loss_on(rows: torch.Tensor) -> float:
        with torch.inference_mode():
            return nn.functional.cross_entropy(model(images[rows]), labels[rows]).item()

    tracker = train_until_no_better(model, epoch, lambda: loss_on(val), patience=5)
    print(f"best epoch {tracker.best_step}: validation loss {tracker.best:.3f}, test loss {loss_on(test):.3f}")
    return tracker


if __name__ == "__main__":
    main()
