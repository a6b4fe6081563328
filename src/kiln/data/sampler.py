"""The order of samples: pure functions of (seed, epoch), the same on every process and at every resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kiln.errors import UsageError
from kiln.random import Purpose, bits, permutation, uniform

Indices = NDArray[np.int64]

WEIGHTINGS = ("inverse", "sqrt", "effective")
_STEP_OF_REPEATS = np.uint64(0x9E3779B97F4A7C15)


class Order(NamedTuple):
    """An epoch: which sample stands at each position, and how often it stood at an earlier one."""

    indices: Indices
    repeats: Indices | None = None  # None: no sample twice

    def draw_keys(self, positions: Indices, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """What augmentation draws by: the samples' identities, another one each time that a sample comes again."""
        found = keys[self.indices[positions]]
        if self.repeats is None:
            return found
        return found + self.repeats[positions].astype(np.uint64) * _STEP_OF_REPEATS


class Sampler(Protocol):
    """Gives each epoch its order."""

    seed: int

    def __len__(self) -> int:
        """Positions in an epoch."""
        ...

    def epoch(self, epoch: int) -> Order:
        """The order of an epoch; the same whenever it is asked for."""
        ...


class Sequential:
    """Every sample once, in the given order."""

    def __init__(self, indices: Indices, *, seed: int = 0) -> None:
        self.indices, self.seed = indices, seed

    def __len__(self) -> int:
        return len(self.indices)

    def epoch(self, epoch: int) -> Order:  # noqa: ARG002 - all are alike
        """See `Sampler`."""
        return Order(self.indices)


class Shuffle:
    """Every sample once, in an order that follows from the samples' keys alone.

    Args:
        indices: (N,) samples of the source that take part.
        keys: (N,) uint64, their identities, as from `kiln.random.keys_of`.
        seed: of the run.
    """

    def __init__(self, indices: Indices, keys: NDArray[np.uint64], *, seed: int) -> None:
        self.indices, self.keys, self.seed = indices, keys, seed

    def __len__(self) -> int:
        return len(self.indices)

    def epoch(self, epoch: int) -> Order:
        """See `Sampler`."""
        return Order(self.indices[permutation(self.seed, epoch, self.keys)])


class Weighted:
    """As many positions as samples, each drawn anew with a probability in proportion to the weights.

    Args:
        indices: (N,) samples of the source that take part.
        weights: (N,), >= 0, not all 0; see `class_weights`.
        seed: of the run.
    Raises: UsageError: weights that are no weights.
    """

    def __init__(self, indices: Indices, weights: NDArray[np.float64], *, seed: int) -> None:
        if len(weights) != len(indices) or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
            raise UsageError(
                "E103", "sample weights that are no weights", expected=f"{len(indices)} numbers >= 0, not all 0"
            )
        self.indices, self.seed = indices, seed
        self._edges = np.cumsum(weights) / weights.sum()

    def __len__(self) -> int:
        return len(self.indices)

    def epoch(self, epoch: int) -> Order:
        """See `Sampler`."""
        positions = np.arange(len(self.indices), dtype=np.uint64)
        draws = uniform(self.seed, Purpose.SAMPLE, epoch=epoch, sample=positions)[:, 0]
        chosen = np.searchsorted(self._edges[:-1], draws, side="right")
        return _with_repeats(self.indices[chosen])


class Balanced:
    """As many positions as samples, every class equally often; within a class all come before one comes again.

    Args:
        indices: (N,) samples of the source that take part.
        keys: (N,) uint64, their identities.
        strata: (N,) the class of each.
        seed: of the run.
    """

    def __init__(self, indices: Indices, keys: NDArray[np.uint64], strata: Sequence[str], *, seed: int) -> None:
        self.indices, self.seed, self._keys = indices, seed, keys
        _, of_class = np.unique(np.asarray(strata, dtype=object).astype(str), return_inverse=True)
        self._members = [np.flatnonzero(of_class == number) for number in range(int(of_class.max()) + 1)]

    def __len__(self) -> int:
        return len(self.indices)

    def epoch(self, epoch: int) -> Order:
        """See `Sampler`."""
        chosen = []
        for number, members in enumerate(self._members):
            share, more = divmod(len(self), len(self._members))
            # Who gets one more than the others changes from epoch to epoch.
            wanted = share + ((number - epoch * more) % len(self._members) < more)
            cycles = -(-wanted // len(members))
            keys = self._keys[members]
            steps = np.arange(cycles, dtype=np.uint64) * _STEP_OF_REPEATS
            orders = [permutation(self.seed, epoch, keys + step) for step in steps]
            chosen.append(members[np.concatenate(orders)[:wanted]] if cycles else members[:0])
        together = np.concatenate(chosen)
        positions = np.arange(len(together), dtype=np.uint64)
        shuffled = together[
            np.argsort(bits(self.seed, Purpose.SAMPLE, epoch=epoch, sample=positions)[:, 0], kind="stable")
        ]
        return _with_repeats(self.indices[shuffled])


class Repeated:
    """Repeated augmentation: each sample several times in a row, differently augmented; epochs stay as long.

    Source: Hoffer et al. 2020, "Augment your batch", arXiv:1901.09335.

    Args:
        sampler: whose first positions are repeated.
        times: each of them.
    """

    def __init__(self, sampler: Sampler, times: int) -> None:
        self.sampler, self.times, self.seed = sampler, times, sampler.seed

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int) -> Order:
        """See `Sampler`."""
        order = self.sampler.epoch(epoch).indices[: -(-len(self) // self.times)]
        return _with_repeats(np.repeat(order, self.times)[: len(self)])


class Foreign:
    """The user's own sampler: any iterable of places among the training samples, asked once per epoch (class E0).

    Args:
        indices: (N,) samples of the source that take part.
        places: what is iterated; `set_epoch`, where it has one, is called first, as of torch's DistributedSampler.
        seed: of the run.
    Raises: UsageError: it yields nothing, or something that is no place.
    """

    def __init__(self, indices: Indices, places: Iterable[int], *, seed: int) -> None:
        self.indices, self.seed, self._places = indices, seed, places
        self._length: int | None = None
        self._length = len(self.epoch(0).indices)

    def __len__(self) -> int:
        return self._length or 0

    def epoch(self, epoch: int) -> Order:
        """See `Sampler`."""
        set_epoch: Callable[[int], Any] | None = getattr(self._places, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        places = np.fromiter((int(place) for place in self._places), np.int64)
        if not len(places) or places.min() < 0 or places.max() >= len(self.indices):
            raise UsageError(
                "E103",
                f"the sampler {type(self._places).__name__} yields {len(places)} places"
                + (f" from {places.min()} to {places.max()}" if len(places) else ""),
                expected=f"places from 0 to {len(self.indices) - 1}, the training samples",
            )
        if self._length is not None and len(places) != self._length:
            raise UsageError(
                "E103",
                f"the sampler {type(self._places).__name__} yields {len(places)} places in epoch {epoch}",
                expected=f"{self._length} as in the first: the length of training is counted by it",
            )
        return _with_repeats(self.indices[places])


class Remembered:
    """A sampler whose latest orders are kept: prefetching asks for two epochs in turn."""

    def __init__(self, sampler: Sampler, *, most: int = 2) -> None:
        self.sampler, self.seed, self._most = sampler, sampler.seed, most
        self._orders: dict[int, Order] = {}

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int) -> Order:
        """See `Sampler`."""
        if epoch not in self._orders:
            self._orders = dict(list(self._orders.items())[-self._most + 1 :])
            self._orders[epoch] = self.sampler.epoch(epoch)
        return self._orders[epoch]


def class_weights(strata: Sequence[str], how: str, *, beta: float = 0.999) -> NDArray[np.float64]:
    """(N,) the weight of each sample by how many share its class: `inverse`, `sqrt`, or `effective` (number).

    Source: Cui et al. 2019, arXiv:1901.05555, eq. 6, for `effective`: (1 - beta) / (1 - beta^n).
    Raises: UsageError: another word.
    """
    if how not in WEIGHTINGS:
        raise UsageError("E101", f"sample weights {how!r}", got=how, choices=WEIGHTINGS)
    _, of_class, counts = np.unique(
        np.asarray(strata, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    counts = counts.astype(np.float64)
    weights = {
        "inverse": 1 / counts,
        "sqrt": counts**-0.5,
        "effective": (1 - beta) / (1 - beta**counts),
    }[how]
    return weights[of_class]


def take_fraction(
    indices: Indices, keys: NDArray[np.uint64], strata: Sequence[str], fraction: float, *, seed: int
) -> Indices:
    """A part of the samples, the same share of every class and at least one of each, for learning curves.

    A larger fraction holds all that a smaller one holds.

    Args:
        indices: (N,) samples of the source.
        keys: (N,) uint64, their identities.
        strata: (N,) the class of each.
        fraction: in (0, 1].
        seed: of the run.
    """
    if fraction >= 1:
        return indices
    ranks = bits(seed, Purpose.SAMPLE, sample=keys)[:, 0]
    _, of_class = np.unique(np.asarray(strata, dtype=object).astype(str), return_inverse=True)
    kept = np.zeros(len(indices), bool)
    for number in range(int(of_class.max()) + 1):
        members = np.flatnonzero(of_class == number)
        first = members[np.argsort(ranks[members], kind="stable")]
        kept[first[: max(1, round(fraction * len(members)))]] = True
    return indices[kept]


def _with_repeats(indices: Indices) -> Order:
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    if len(starts) == len(indices):
        return Order(indices)
    repeats = np.empty(len(indices), np.int64)
    lengths = np.diff(np.r_[starts, len(indices)])
    repeats[order] = np.arange(len(indices)) - np.repeat(starts, lengths)
    return Order(indices, repeats)


@dataclass(frozen=True)
class Cut:
    """How the order of an epoch is cut into steps, and a step into the processes' shares.

    Attributes:
        num_samples: samples per epoch.
        batch_size: samples per step over all processes.
        drop_last: leave a last, smaller batch out.
        rank: of this process.
        world_size: number of processes.
        pairs: keep positions 2k and 2k + 1, which mixing blends, in one share.
    """

    num_samples: int
    batch_size: int
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1
    pairs: bool = False

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
        first, last = self._edge(start, size, self.rank), self._edge(start, size, self.rank + 1)
        return epoch, np.arange(first, last, dtype=np.int64), size

    def _edge(self, start: int, size: int, rank: int) -> int:
        edge = start + size * rank // self.world_size
        return edge - edge % 2 if self.pairs and 0 < rank < self.world_size and edge > start else edge
