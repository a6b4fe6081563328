"""The order of samples: pure functions of (seed, epoch), the same on every process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiln.random import permutation

Indices = NDArray[np.int64]


class Shuffle:
    """Every sample once per epoch, in an order that follows from the samples' keys alone.

    Args:
        indices: (N,) samples of the source that take part.
        keys: (N,) uint64, their identities, as from `kiln.random.keys_of`.
        seed: of the run.
    """

    def __init__(self, indices: Indices, keys: NDArray[np.uint64], *, seed: int) -> None:
        self.indices, self.keys, self.seed = indices, keys, seed
        self._epoch, self._order = -1, indices

    def __len__(self) -> int:
        return len(self.indices)

    def epoch(self, epoch: int) -> Indices:
        """(N,) indices into the source, in the order of this epoch."""
        if epoch != self._epoch:
            self._order = self.indices[permutation(self.seed, epoch, self.keys)]
            self._epoch = epoch
        return self._order


@dataclass(frozen=True)
class Cut:
    """How the order of an epoch is cut into steps, and a step into the processes' shares.

    Attributes:
        num_samples: samples per epoch.
        batch_size: samples per step over all processes.
        drop_last: leave a last, smaller batch out.
        rank: of this process.
        world_size: number of processes.
    """

    num_samples: int
    batch_size: int
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def positions(self, step: int) -> tuple[int, NDArray[np.int64], int]:
        """What this process takes in a step.

        Args:
            step: 0-based over the whole run.
        Returns: the epoch, this process's positions in its order (contiguous), and the size of the global batch.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.batch_size
        size = min(self.batch_size, self.num_samples - start)
        first, last = size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size
        return epoch, np.arange(start + first, start + last, dtype=np.int64), size
