"""Two rates in one optimizer: a trained body slowly, its new head ten times as fast.

    python examples/two_rates.py          # pip install scikit-learn

Tutorials list the parameters by hand: what is forgotten is never trained, and biases and norms are decayed like weights.
Here `parameter_groups` takes patterns, puts each parameter in exactly one group, and decays neither biases nor norms.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from kiln.optim.groups import check_groups, describe_groups, parameter_groups
from kiln.optim.schedules import cosine, set_rates


def main(*, epochs: int = 5, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU())})
    model["head"] = nn.Linear(64, 10)

    groups = parameter_groups(model, lr=1e-2, weight_decay=0.05, rules={"body": {"lr_factor": 0.1}})
    optimizer = torch.optim.AdamW(groups)
    check_groups(model, optimizer.param_groups)  # nothing forgotten, nothing twice, nothing frozen
    schedule = cosine(epochs * 28)

    for step in range(epochs * 28):
        rows = torch.randint(len(images), (64,))
        set_rates(optimizer, schedule(step))  # each group keeps its own rate, times the same factor
        optimizer.zero_grad()
        nn.functional.cross_entropy(model["head"](model["body"](images[rows])), labels[rows]).backward()
        optimizer.step()

    rates = {row["group"]: row["lr"] for row in describe_groups(optimizer.param_groups)}
    loss = nn.functional.cross_entropy(model["head"](model["body"](images)), labels).item()
    print(", ".join(f"{name}: {rate:g}" for name, rate in rates.items()), f"-> training loss {loss:.3f}")
    return rates


if __name__ == "__main__":
    main()
