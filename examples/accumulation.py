"""A batch of 64 in pieces of 22, 22 and 20: the same update as in one piece.

    python examples/accumulation.py          # pip install scikit-learn

Tutorials forget to divide the sum of gradients, divide it by the number of pieces although the last is smaller, or leave
the last ones of an epoch out. Here `micro_batch_size` only says how many go through at once, and the division is exact.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

from kiln import fit
from kiln.engine import State, Step, supervised
from kiln.losses import CrossEntropy


def main(*, epochs: int = 3, seed: int = 0) -> float:
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    batches = list(zip((images.float() / 16).split(64), labels.split(64), strict=True))
    first = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10))

    ends = []
    for micro_batch_size in (None, 22):
        model = copy.deepcopy(first)
        state = State(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        step = Step(supervised(CrossEntropy()), micro_batch_size=micro_batch_size)
        for _ in fit(state, step, batches, total_steps=epochs * len(batches)):
            pass
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    gap = (ends[0] - ends[1]).abs().max().item()
    print(f"after {state.step} steps of 64, whole or 22 + 22 + 20, the weights differ by at most {gap:.1e}")
    return gap


if __name__ == "__main__":
    main()
