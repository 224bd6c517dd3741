"""Random numbers from the counter-based generator Philox4x32-10: each is a pure function of its coordinates.

They do not depend on the NumPy release, the batch size, the number of ranks or the order of calls.
"""

import enum

import numpy as np
from numpy.typing import NDArray


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


def philox(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Return random words (…, 4) for counters (…, 4) and a key of two words (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (product1 >> shift) ^ c1 ^ k0, product1 & low, (product0 >> shift) ^ c3 ^ k1, product0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def random_words(
    seed: int, epoch: int, samples: NDArray[np.int64], draw: Draw, view: int, blocks: int
) -> NDArray[np.uint64]:
    """Return 64-bit words (N, 2 · blocks) for these samples. Each word depends only on its own coordinates."""
    counter = np.empty((len(samples), blocks, 4), dtype=np.uint32)
    counter[..., 0] = (samples & 0xFFFFFFFF)[:, None]
    counter[..., 1] = (samples >> 32)[:, None]
    counter[..., 2] = view << 16 | draw
    counter[..., 3] = np.arange(blocks)
    words = philox(counter, (seed, epoch)).astype(np.uint64)
    return (words[..., 0::2] << np.uint64(32) | words[..., 1::2]).reshape(len(samples), -1)


def uniform(
    seed: int, epoch: int, samples: NDArray[np.int64], draw: Draw, view: int, count: int = 1
) -> NDArray[np.float64]:
    """Return numbers (N, count) in [0, 1), or (N,) if count is 1."""
    words = random_words(seed, epoch, samples, draw, view, blocks=(count + 1) // 2)[:, :count]
    numbers = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers[:, 0] if count == 1 else numbers


def permutation(seed: int, epoch: int, count: int, draw: Draw, view: int = 0) -> NDArray[np.int64]:
    """Return a random permutation of range(count): the numbers sorted by random keys."""
    keys = random_words(seed, epoch, np.arange(count), draw, view, blocks=1)[:, 0]
    return np.argsort(keys, kind="stable")
