"""`fit` knows nothing of images: a linear regression with a loss of one's own.

    python examples/regression.py

Tutorials subtract targets (B,) from outputs (B, 1), which compares every pair, and count a small last batch as a whole one.
Here a loss with one value per sample is averaged over samples; a loss that returns something else is refused.

`fit` takes any module, any iterable of (inputs, targets) with a length, and any such loss, or one that returns a scalar. It
is a generator of events: whoever runs it decides what to do with them.
"""

import torch
from torch import nn

from kiln import fit
from kiln.engine import State, Step, supervised
from kiln.events import EpochDone
from kiln.optim.schedules import cosine, with_warmup


def squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One value per sample, so that a last smaller batch counts for what it holds."""
    return (outputs - targets).square().mean(dim=1)


def main(*, epochs: int = 30, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    weights, bias = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0.3])
    inputs = torch.randn(200, 3)
    targets = inputs @ weights.T + bias + 0.01 * torch.randn(200, 1)
    batches = list(zip(inputs.split(32), targets.split(32), strict=True))

    model = nn.Linear(3, 1)
    state = State(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    total_steps = epochs * len(batches)
    schedule = with_warmup(cosine, total_steps, warmup_steps=10)
    for event in fit(state, Step(supervised(squared_error)), batches, total_steps=total_steps, schedule=schedule):
        if isinstance(event, EpochDone) and event.epoch % 10 == 0:
            print(f"epoch {event.epoch:3}  squared error {event.train_loss:.6f}")
    print(
        "weights", [round(value, 2) for value in model.weight.flatten().tolist()], "bias", round(model.bias.item(), 2)
    )
    return model


if __name__ == "__main__":
    main()
