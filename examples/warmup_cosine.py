"""A linear warmup, then a cosine, in a loop of one's own.

    python examples/warmup_cosine.py          # pip install scikit-learn

Tutorials step the schedule per epoch with lengths meant in steps, begin at a rate of 0, and jump where the cosine starts.
Here the rate is a function of the step, set before the step is taken: nothing to call too late, nothing to save.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from kiln.optim.schedules import cosine, set_rates, with_warmup


def main(*, epochs: int = 8, peak: float = 1e-2, seed: int = 0) -> list[float]:
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    batches = list(zip(images.split(64), labels.split(64), strict=True))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak)
    total_steps = epochs * len(batches)
    schedule = with_warmup(cosine, total_steps, warmup_steps=total_steps // 10, min_fraction=0.01)

    rates = []
    for step in range(total_steps):
        inputs, targets = batches[step % len(batches)]
        rates.append(set_rates(optimizer, schedule(step)))
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    print(f"rate {rates[0]:.1e} -> {max(rates):.1e} -> {rates[-1]:.1e} over {total_steps} steps, last loss {loss:.3f}")
    return rates


if __name__ == "__main__":
    main()
