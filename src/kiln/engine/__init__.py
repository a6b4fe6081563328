"""The training loop and what it stands on. Knows nothing of images: any module, any iterable of inputs and targets.

For a loop of one's own: `kiln.fit`, and these.
"""

from __future__ import annotations

from kiln.engine.state import State, Tracker
from kiln.engine.step import Step
from kiln.engine.supervised import supervised

__all__ = ["State", "Step", "Tracker", "supervised"]
