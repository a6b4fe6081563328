"""Label smoothing on scikit-learn's handwritten digits.

    python examples/smoothed_cross_entropy.py          # pip install scikit-learn

Tutorials smooth the held-out loss too, and average the means of batches, in which a smaller last batch counts for more.
Here `CrossEntropy(smoothing=...)` trains, a plain one measures, and both give a value per sample, whose mean is exact.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from kiln.losses import CrossEntropy


def main(*, epochs: int = 15, seed: int = 0) -> tuple[float, float]:
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    train, held_out = torch.randperm(len(images)).split([1400, len(images) - 1400])
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    smoothed, plain = CrossEntropy(smoothing=0.1), CrossEntropy()

    for _ in range(epochs):
        for rows in train[torch.randperm(len(train))].split(64):
            loss = smoothed(model(images[rows]), labels[rows]).values.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with torch.inference_mode():
        parts = [(plain(model(images[rows]), labels[rows]).values, model(images[rows])) for rows in held_out.split(64)]
    losses, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    accuracy = (logits.argmax(1) == labels[held_out]).float().mean().item()
    print(f"held out: cross entropy {losses.mean():.3f} (not smoothed), accuracy {accuracy:.1%} of {len(losses)}")
    return losses.mean().item(), accuracy


if __name__ == "__main__":
    main()
