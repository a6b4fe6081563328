"""Half precision with a loss scale, and a gradient that is clipped.

    python examples/mixed_precision.py          # pip install scikit-learn

Tutorials clip before they unscale, which clips to a limit 65,536 times too small, and save no scale with the checkpoint.
Here a `Step` scales, unscales, checks, clips and steps in that order, and its scale is part of the state that is saved.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from kiln import Batch
from kiln.engine import State, Step, supervised
from kiln.losses import CrossEntropy


def main(*, epochs: int = 4, seed: int = 0) -> State:
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    state = State(model, torch.optim.AdamW(model.parameters(), lr=5e-3))
    step = Step(supervised(CrossEntropy()), precision="fp16", clip=1.0)

    skipped = torch.zeros(())
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            measured = step(state, Batch(images[rows], labels[rows]))
            state.step += 1
            skipped += measured.overflow

    scale = state.state()["parts"]["scaler"]["scale"]
    print(f"fp16: loss {measured.loss:.3f}, scale {scale:.0f}, {int(skipped)} of {state.step} steps skipped")
    return state


if __name__ == "__main__":
    main()
