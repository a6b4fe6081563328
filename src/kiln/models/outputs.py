"""What a classifier returns: one tensor of logits, or logits with auxiliary ones beside them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kiln.errors import UsageError

# How much an auxiliary loss weighs: one head, Szegedy et al. 2016, arXiv:1512.00567 as torchvision trains inception_v3;
# two heads, Szegedy et al. 2015, arXiv:1409.4842, section 5 (googlenet).
ONE_HEAD, SEVERAL_HEADS = 0.4, 0.3


def main_and_auxiliary(outputs: Any) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """The main logits, and each auxiliary output with the weight of its loss.

    Args:
        outputs: logits (B, K); a tuple that starts with them (torchvision's inception_v3 and googlenet, timm's
            inception_v3); an object with the attribute `logits`, or a mapping with the key `logits`.

    Raises: UsageError: none of these.
    """
    if isinstance(outputs, Tensor):
        return outputs, []
    if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], Tensor):
        others = [output for output in outputs[1:] if isinstance(output, Tensor)]
        weight = ONE_HEAD if len(others) == 1 else SEVERAL_HEADS
        return outputs[0], [(weight, output) for output in others]
    logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits, []
    raise UsageError(
        "E107",
        f"the model returned {type(outputs).__name__}",
        expected="logits (B, K), or a tuple that starts with them",
    )
