"""Counter-based random numbers: a number is a pure function of (seed, purpose, epoch, sample, draw).

Nothing here has state, so the numbers do not depend on the order in which they are asked for, on how a batch is cut,
or on how many workers or processes ask. The generator is Philox4x32-10, vectorised in NumPy over whole batches.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11; the Random123 known answers are tests.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]


class Purpose(IntEnum):
    """What a number is for. Two purposes never share a number; the values are part of the format: never reuse one."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    COLOR = 4
    ERASE = 5
    MIX = 6
    DROPOUT = 7
    INIT = 8
    BOOTSTRAP = 9
    USER_TRANSFORM = 10
    NOISE = 11
    POLICY = 12
    AFFINE = 13
    SAMPLE = 14


_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10 on many counters at once.

    Args:
        counter: (..., 4) 32-bit words held in uint64.
        key: two 32-bit words.
    Returns: (..., 4) 32-bit words held in uint64.
    """
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _32) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def bits(seed: int, purpose: Purpose, *, epoch: ArrayLike = 0, sample: ArrayLike = 0, num_draws: int = 1) -> U64:
    """Uniform 64-bit integers.

    Args:
        seed: any integer; its lowest 64 bits count.
        purpose: what the numbers are for.
        epoch: below 2**32; broadcast against `sample`. Also a step number, where there is no epoch.
        sample: identities of samples, uint64, as from `key_of`.
        num_draws: how many independent numbers per sample, below 2**17.
    Returns: the broadcast shape + (num_draws,), uint64.
    """
    epoch, sample = np.broadcast_arrays(np.asarray(epoch, np.uint64), np.asarray(sample, np.uint64))
    num_blocks = (num_draws + 1) // 2
    counter = np.empty((*sample.shape, num_blocks, 4), np.uint64)
    counter[..., 0] = (sample & _LOW)[..., None]
    counter[..., 1] = (sample >> _32)[..., None]
    counter[..., 2] = (epoch & _LOW)[..., None]
    counter[..., 3] = (int(purpose) << 16) + np.arange(num_blocks, dtype=np.uint64)
    words = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    pairs = (words[..., 0::2] << _32) | words[..., 1::2]
    return pairs.reshape(*sample.shape, 2 * num_blocks)[..., :num_draws]


def uniform(
    seed: int, purpose: Purpose, *, epoch: ArrayLike = 0, sample: ArrayLike = 0, num_draws: int = 1
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), with all 53 bits. Arguments and shape as for `bits`."""
    raw = bits(seed, purpose, epoch=epoch, sample=sample, num_draws=num_draws)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, samples: U64, *, purpose: Purpose = Purpose.ORDER) -> NDArray[np.int64]:
    """The order of an epoch: indices into `samples`, each exactly once.

    Sorts one hashed key per sample, so it does not change with the version of any library. Samples with equal keys
    (duplicates of one path) stay in their given order.
    """
    keys = bits(seed, purpose, epoch=epoch, sample=samples)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64)


def key_of(text: str) -> int:
    """The 64-bit identity of a sample, from its path or record id (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def keys_of(texts: list[str] | tuple[str, ...]) -> U64:
    """`key_of` for many texts. Returns: (N,) uint64."""
    return np.fromiter((key_of(text) for text in texts), np.uint64, count=len(texts))


def torch_seed(seed: int, purpose: Purpose, *, step: int = 0, micro: int = 0, rank: int = 0) -> int:
    """A seed for a `torch.Generator`: a pure function of its arguments, below 2**63."""
    return int(bits(seed, purpose, epoch=step, sample=(rank << 32) | micro)[0] >> np.uint64(1))
