"""How much memory activation checkpointing saves, on the models people use, and that gradients stay the same.

    python benchmarks/memory.py [--json PATH] [--quick] [--batch-size N] [--px N] [--models NAME...]

Claims: with the blocks of resnet50 and vit_small computed again in backward, a training step holds at least 40 % less
beside weights, gradients and optimizer state, at its peak and with what is recomputed counted; gradients are the same bit
for bit, and running statistics too.

How: every tensor is followed from the operation that returns it until it is freed (`kiln.observe.memory`), so the figures
are bytes, the same on any machine and however busy it is. Gradients stay allocated all the time, so that the peak is the
moment when activations and what backward works with are largest; the two are compared together.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import record
import timm
import torch
from torch import Tensor, nn

from kiln.engine.precision import autocast
from kiln.models.checkpointing import checkpoint_activations_
from kiln.observe.memory import peak_by_part

MODELS = ("resnet50", "vit_small_patch16_224")
FURTHER = ("convnext_tiny", "efficientnet_b0", "swin_tiny_patch4_window7_224")
PACKAGES = ("torch", "timm")
MIB = 2**20


def made(name: str, px: int) -> nn.Module:
    """The model as it is trained, with stochastic depth, so that the recomputation has something to repeat."""
    torch.manual_seed(0)
    sized = {"img_size": px} if name.startswith(("vit", "swin")) and px != 224 else {}
    return timm.create_model(name, num_classes=10, drop_path_rate=0.1, **sized).to(memory_format=torch.channels_last)


def stepper(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, precision: str
) -> Callable[[], Tensor]:
    def step() -> Tensor:
        torch.manual_seed(1)
        optimizer.zero_grad(set_to_none=False)
        with autocast(precision, images.device):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def gradients_equal(plain: nn.Module, again: nn.Module, images: Tensor, labels: Tensor) -> bool:
    """One forward and backward each from the same weights: gradients and buffers, bit for bit."""
    for model in (plain, again):
        model.zero_grad()
        torch.manual_seed(2)
        nn.functional.cross_entropy(model(images), labels).backward()
    pairs = zip(plain.named_parameters(), again.named_parameters(), strict=True)
    same = all(torch.equal(a.grad, b.grad) for (_, a), (_, b) in pairs if a.grad is not None and b.grad is not None)
    return same and all(torch.equal(a, b) for a, b in zip(plain.buffers(), again.buffers(), strict=True))


def measured(name: str, *, batch_size: int, px: int, precision: str) -> list[dict[str, Any]]:
    """One row for the model as it is, and one with its blocks computed again."""
    model = made(name, px).train()
    images = torch.randn(batch_size, 3, px, px).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size) % 10
    again = copy.deepcopy(model)
    num_blocks = len(checkpoint_activations_(again))
    same = gradients_equal(model, again, images[:2], labels[:2])
    rows = []
    for arm, one in (("kept", model), ("recomputed", again)):
        optimizer = torch.optim.AdamW(one.parameters(), fused=True)
        step = stepper(one, optimizer, images, labels, precision)
        peak = peak_by_part(step, one, optimizer)
        begun = time.process_time()
        step()
        row = {"model": name, "arm": arm, "precision": precision, "batch_size": batch_size, "px": px}
        row |= {**asdict(peak), "total": peak.total, "cpu_seconds": time.process_time() - begun}
        rows.append({**row, "num_blocks": num_blocks, "gradients_equal": same})
    return rows


def saved(rows: list[dict[str, Any]]) -> float:
    """The share of activations and workspace that is not held at the peak any more."""
    kept, again = (row["activations"] + row["workspace"] for row in rows)
    return 1 - again / kept


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write machine, versions, raw rows and claims here")
    parser.add_argument("--quick", action="store_true", help="prove in under a minute that the script works")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--models", nargs="+", default=(*MODELS, *FURTHER))
    given = parser.parse_args()
    batch_size = 4 if given.quick else given.batch_size
    rows: list[dict[str, Any]] = []
    claims: list[record.Claim] = []
    for name in MODELS if given.quick else given.models:
        pair = measured(name, batch_size=batch_size, px=given.px, precision=given.precision)
        rows += pair
        print(f"{name}: {saved(pair):.1%} less", file=sys.stderr, flush=True)
        if name in MODELS:
            claims.append(record.Claim(f"activation memory saved on {name}", saved(pair), ">= 0.4", saved(pair) >= 0.4))
            same = pair[0]["gradients_equal"]
            claims.append(record.Claim(f"equal gradients on {name}", float(same), "1: bit for bit", same))
    parts = ("weights", "gradients", "optimizer", "activations", "workspace", "other", "total")
    lines = [
        (
            f"{row['model']} {row['arm']}",
            *(f"{row[part] / MIB:.1f}" for part in parts),
            f"{row['cpu_seconds']:.2f}",
            str(row["num_blocks"]),
        )
        for row in rows
    ]
    title = f"MiB at the peak of a step: batch {batch_size}, {given.px} px, {given.precision}, AdamW"
    record.show(title, ("model", *parts, "cpu s", "blocks"), lines)
    return record.finish(claims, rows, packages=PACKAGES, path=given.json)


if __name__ == "__main__":
    sys.exit(main())
