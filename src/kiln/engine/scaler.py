"""The loss scale of fp16: gradients too small for its range are multiplied up before backward, and divided back after.

The rule is that of `torch.amp.GradScaler`: back off when a gradient overflowed, grow after many steps without one. Nothing
here waits for the device. It is part of the state of a training: a resume without it would overflow all over again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LossScaler:
    """A dynamic loss scale, and how many steps it cost.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2; numbers as in `torch.amp.GradScaler`.

    Args:
        initial_scale: to begin with; the first overflows bring it down to what the model takes.
        growth_factor: the scale is multiplied by it after `growth_interval_steps` steps without an overflow.
        backoff_factor: the scale is multiplied by it after an overflow.
        growth_interval_steps: how long to wait before growing.
    """

    def __init__(
        self,
        *,
        initial_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval_steps: int = 2000,
    ) -> None:
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval_steps = growth_interval_steps
        self.scale = torch.full((), initial_scale, dtype=torch.float32)
        self._growth_tracker = torch.zeros((), dtype=torch.int32)
        self._num_overflows = torch.zeros((), dtype=torch.int32)

    @property
    def num_overflows(self) -> int:
        """Steps skipped since the training began because a scaled gradient was too large; reading waits for the device."""
        return int(self._num_overflows)

    def to(self, device: torch.device) -> None:
        """Bring the scale to where the gradients are."""
        self.scale, self._growth_tracker = self.scale.to(device), self._growth_tracker.to(device)
        self._num_overflows = self._num_overflows.to(device)

    def inverse(self) -> Tensor:
        """0-d: what brings gradients back."""
        return self.scale.double().reciprocal().float() if self.scale.device.type != "mps" else self.scale.reciprocal()

    def is_overflow(self, found_inf: Tensor, bad_loss: Tensor) -> Tensor:
        """0-d, 1 where the scale is to blame: the loss is finite, and the gradients would have been without the scale.

        Args:
            found_inf: above 0 where a scaled gradient was not finite.
            bad_loss: above 0 where the loss was not finite.
        """
        return ((found_inf > 0) & (bad_loss == 0) & (self.scale > 1)).float()

    def update(self, found_inf: Tensor, overflow: Tensor) -> None:
        """Back off or grow, once for each optimizer step, taken or not."""
        self._num_overflows += overflow.to(torch.int32)
        torch._amp_update_scale_(
            self.scale,
            self._growth_tracker,
            found_inf,
            self.growth_factor,
            self.backoff_factor,
            self.growth_interval_steps,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "scale": self.scale,
            "growth_tracker": self._growth_tracker,
            "num_overflows": self._num_overflows,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.scale.copy_(state["scale"])
        self._growth_tracker.copy_(state["growth_tracker"])
        self._num_overflows.copy_(state["num_overflows"])
