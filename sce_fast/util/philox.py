"""Random numbers from the counter-based generator Philox4x32-10: each is a pure function of its coordinates.

They do not depend on the NumPy release, the batch size, the number of ranks or the order of calls.
"""

import enum
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sce_fast.native import CPU


class Draw(enum.IntEnum):
    """The purpose of a random number. Renumbering would change the pixels of resumed runs: only append."""

    ORDER = 0
    CROP_AREA = 1
    CROP_RATIO = 2
    CROP_TOP = 3
    CROP_LEFT = 4
    FLIP = 5
    JITTER = 6
    JITTER_ORDER = 7
    BRIGHTNESS = 8
    CONTRAST = 9
    SATURATION = 10
    HUE = 11
    GRAYSCALE = 12
    BLUR = 13
    BLUR_SIGMA = 14
    SOLARIZE = 15
    REPLACEMENT = 16
    SHUFFLE = 17
    CLIP_START = 18
    CLIP_SPEED = 19
    CLIP_DURATION = 20
    CLIP_DISTANCE = 21
    CLIP_ORDER = 22
    TEMPORAL_DIFFERENCE = 23
    SUBSET = 24
    DROPOUT = 25


_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.arange(10, dtype=np.uint64)[:, None, None] * np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
BLOCK = 1 << 14  # samples
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(even: NDArray[np.uint64], odd: NDArray[np.uint64], key: tuple[int, int]) -> None:
    """Replace counters by random words, in place (Salmon et al., SC 2011).

    Args:
        even: (…, 2, N) words 0 and 2 of each counter, below 2³².
        odd: (…, 2, N) words 1 and 3 of each counter, below 2³².
        key: two words, of which the low 32 bits count.
    """
    round_keys = np.array(key, dtype=np.uint64)[:, None] + _KEY_STEPS & _LOW  # (10, 2, 1)
    product = np.empty_like(even)
    crossed = product[..., ::-1, :]
    for round_key in round_keys:
        np.multiply(even, _MULTIPLIERS, out=product)
        np.right_shift(crossed, _SHIFT, out=even)
        even ^= odd
        even ^= round_key
        np.bitwise_and(crossed, _LOW, out=odd)


def random_words(
    seed: int, epoch: int, samples: NDArray[np.int64], draws: Mapping[Draw, int], view: int | NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Return 64-bit words (W, N) for these samples. Each word depends only on its own coordinates.

    Args:
        draws: purpose → number of blocks of two words. The words of the purposes follow each other.
        view: number of the view, or (N,) one for each sample.
    """
    purposes, numbers = _blocks(tuple(draws.items()))
    if CPU.module is not None:
        return CPU.module.random_words(seed, epoch, samples, view, purposes, numbers)
    even, odd = np.empty((2, len(numbers), 2, len(samples)), dtype=np.uint64)
    even[:, 0], odd[:, 0] = samples & 0xFFFFFFFF, samples >> 32
    even[:, 1], odd[:, 1] = view << 16 | purposes, numbers
    philox(even, odd, (seed, epoch))
    return (even << _SHIFT | odd).reshape(2 * len(numbers), len(samples))


@cache
def _blocks(draws: tuple[tuple[Draw, int], ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the purpose (B, 1) of each block, and its number (B, 1) among the blocks of its purpose."""
    pairs = [(draw, block) for draw, blocks in draws for block in range(blocks)]
    purposes, numbers = np.array(pairs, dtype=np.int64).reshape(-1, 2).T[..., None]
    return purposes, numbers


def uniforms(
    seed: int, epoch: int, samples: NDArray[np.int64], draws: Mapping[Draw, int], view: int | NDArray[np.int64]
) -> dict[Draw, NDArray[np.float64]]:
    """Return numbers in [0, 1) for several purposes. One call for many numbers is much faster than many calls.

    Args:
        draws: purpose → count, for numbers (N, count), or (N,) if count is 1.
        view: number of the view, or (N,) one for each sample.
    """
    words = random_words(seed, epoch, samples, {draw: (count + 1) // 2 for draw, count in draws.items()}, view)
    numbers = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    found, first = {}, 0
    for draw, count in draws.items():
        found[draw] = numbers[first] if count == 1 else numbers[first : first + count].T
        first += count + count % 2
    return found


def uniform(
    seed: int,
    epoch: int,
    samples: NDArray[np.int64],
    draw: Draw,
    view: int | NDArray[np.int64],
    count: int = 1,
) -> NDArray[np.float64]:
    """Return numbers (N, count) in [0, 1), or (N,) if count is 1."""
    return uniforms(seed, epoch, samples, {draw: count}, view)[draw]


def permutation(seed: int, epoch: int, count: int, draw: Draw, view: int = 0) -> NDArray[np.int64]:
    """Return a random permutation of range(count): the numbers sorted by random keys of 64 bits.

    Ten million take 0.1 GB, of which the result has 0.08.
    """
    low = np.uint64((1 << count.bit_length()) - 1)
    # Numbers in the low bits of their keys: sorting these moves half as much memory as sorting keys and numbers, and
    # does not look keys up at random places.
    order = np.empty(count, dtype=np.uint64)
    for part in _blocks_of(count):
        order[part] = sort_keys(seed, epoch, np.arange(part.start, part.stop), draw, view) & ~low
        order[part] |= np.arange(part.start, part.stop, dtype=np.uint64)
    order.sort()
    tied = np.zeros(count + 1, dtype=np.bool_)  # whether the high bits are those of the number before
    for part in _blocks_of(count - 1):
        after = slice(part.start + 1, part.stop + 1)
        tied[after] = (order[part] ^ order[after]) <= low
    order &= low
    places = np.flatnonzero(tied[:-1] | tied[1:])
    numbers = order[places].astype(np.int64)
    order[places] = numbers[np.argsort(sort_keys(seed, epoch, numbers, draw, view), kind="stable")]
    return order.view(np.int64)


def sort_keys(seed: int, epoch: int, samples: NDArray[np.int64], draw: Draw, view: int = 0) -> NDArray[np.uint64]:
    """Return a key (N,) for each sample, by which to sort them; made in blocks, which saves memory and time."""
    keys = np.empty(len(samples), dtype=np.uint64)
    for part in _blocks_of(len(samples)):
        keys[part] = random_words(seed, epoch, samples[part], {draw: 1}, view)[0]
    return keys


def _blocks_of(count: int) -> Iterator[slice]:
    """Yield slices that cover range(count), each small enough for a cache."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))
