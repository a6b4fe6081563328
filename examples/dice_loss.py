"""Dice as a class: find discs in noise. In some images there is none.

    python examples/dice_loss.py

Tutorials threshold the prediction first (no gradient is left), count the batch as one image, or divide by an empty mask.
Here `Dice` takes logits, counts each image by itself, and an empty mask costs nothing where nothing is predicted.
"""

import torch
from torch import Tensor, nn

from kiln.losses import Dice


def discs(num: int, *, px: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(num, 1, px, px) noisy images and (num, px, px) masks of 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randint(8, px - 8, (2, num, 1, 1), generator=generator)
    radius = torch.randint(0, 8, (num, 1, 1), generator=generator)  # 0: an empty mask
    down, across = torch.meshgrid(torch.arange(px), torch.arange(px), indexing="ij")
    masks = (down - centre[0]) ** 2 + (across - centre[1]) ** 2 < radius**2
    return (masks + 0.5 * torch.randn(num, px, px, generator=generator)).unsqueeze(1), masks.long()


def main(*, steps: int = 60, seed: int = 0) -> float:
    torch.manual_seed(seed)
    images, masks = discs(192)
    net = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 5, padding=2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    loss_of = Dice(smooth=1.0)

    for step in range(steps):
        rows = torch.arange(step * 32, step * 32 + 32) % 128
        loss = loss_of(net(images[rows]), masks[rows]).values.mean()  # one value per image
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.inference_mode():
        held_out = 1 - loss_of(net(images[128:]), masks[128:]).values
    print(f"soft Dice of {len(held_out)} held-out images {held_out.mean():.3f}, of the worst {held_out.min():.3f}")
    return held_out.mean().item()


if __name__ == "__main__":
    main()
