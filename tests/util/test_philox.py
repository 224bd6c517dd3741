"""Philox gives the published numbers, and each number depends only on its coordinates."""

import numpy as np
import pytest

from sce_fast.native import CPU
from sce_fast.util import philox as module
from sce_fast.util.philox import Draw, permutation, philox, random_words, sort_keys, uniform, uniforms


def test_philox_gives_the_published_answers():
    """The known-answer vectors of Random123."""
    cases = [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, expected in cases:
        even, odd = np.array(counter, dtype=np.uint64).reshape(2, 2, 1).swapaxes(0, 1).copy()
        philox(even, odd, key)
        words = np.stack([even, odd], axis=1).ravel()
        assert " ".join(f"{word:08x}" for word in words) == expected


@pytest.mark.parametrize("count", [1, 3, 4, 100])
def test_the_kernel_gives_the_words_of_numpy(count, monkeypatch):
    assert CPU.module is not None, "the extension is not built: make venv"
    random = np.random.default_rng(count)
    samples = random.integers(0, 2**62, 2 * count)[::2]
    draws = {Draw.FLIP: 1, Draw.DROPOUT: 3, Draw.ORDER: 2}
    for seed, epoch in ((0, 0), (2**32 - 1, 2**32 - 1), (2**32 + 9, 3)):
        for view in (0, 2**16 - 1, random.integers(0, 2**16, count)):
            by_kernel = random_words(seed, epoch, samples, draws, view)
            with monkeypatch.context() as patch:
                patch.setattr(CPU, "module", None)
                by_numpy = random_words(seed, epoch, samples, draws, view)
            assert by_kernel.shape == (12, count)
            assert np.array_equal(by_kernel, by_numpy)


def test_the_kernel_refuses_views_of_other_samples():
    with pytest.raises(ValueError, match="views must be one number, or one for each sample"):
        random_words(0, 0, np.arange(3), {Draw.FLIP: 1}, np.arange(2))


def test_numbers_are_uniform_and_independent():
    numbers = np.stack([uniform(3, 0, np.arange(20000), draw, view=0) for draw in Draw])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(numbers.mean(axis=1) - 0.5).max() < 0.01
    correlation = np.corrcoef(numbers) - np.eye(len(Draw))
    assert np.abs(correlation).max() < 0.035


def test_a_drawn_number_depends_on_its_own_coordinates_alone():
    """It depends neither on other samples nor on earlier draws nor on the count."""
    samples = np.array([5, 2**33 + 1, 17])
    alone = {
        (sample, draw): uniform(9, 4, np.array([sample]), draw, view=2)[0]
        for draw in reversed(Draw)
        for sample in samples[::-1]
    }
    assert len(set(alone.values())) == len(alone)
    for draw in Draw:
        together = uniform(9, 4, samples, draw, view=2)
        assert [alone[sample, draw] for sample in samples] == together.tolist()
        assert np.array_equal(uniform(9, 4, samples, draw, view=2, count=7)[:, 0], together)
    for other in (dict(seed=8, epoch=4, view=2), dict(seed=9, epoch=5, view=2), dict(seed=9, epoch=4, view=3)):
        assert uniform(samples=samples, draw=Draw.FLIP, **other)[0] != alone[5, Draw.FLIP]


def test_many_purposes_at_once_give_the_same_numbers():
    samples = np.array([5, 2**33 + 1, 17])
    draws = {Draw.FLIP: 1, Draw.CROP_AREA: 10, Draw.BLUR: 3, Draw.CROP_TOP: 1}
    together = uniforms(2**31, 4, samples, draws, view=1)
    assert list(together) == list(draws)
    for draw, count in draws.items():
        assert np.array_equal(together[draw], uniform(2**31, 4, samples, draw, view=1, count=count))
        assert together[draw].shape == ((3,) if count == 1 else (3, count))


@pytest.mark.parametrize("count", [1, 2, 7, 4096, module.BLOCK, 3 * module.BLOCK + 5])
def test_a_permutation_sorts_the_keys_of_its_numbers(count):
    keys = random_words(3, 1, np.arange(count), {Draw.ORDER: 1}, 2)[0]
    assert np.array_equal(permutation(3, 1, count, Draw.ORDER, 2), np.argsort(keys, kind="stable"))
    assert np.array_equal(sort_keys(3, 1, np.arange(count), Draw.ORDER, 2), keys)


@pytest.mark.parametrize("mask", [0xFF << 56 | 3, 0xFF, 0])
def test_keys_whose_high_bits_are_equal_are_sorted_too(monkeypatch, mask):
    """So few of the bits differ that most keys are equal, or differ only in the bits that hold the number."""
    masked = lambda *arguments: random_words(*arguments) & np.uint64(mask)  # noqa: E731
    monkeypatch.setattr(module, "random_words", masked)
    count = module.BLOCK + 100
    expected = np.argsort(masked(3, 1, np.arange(count), {Draw.ORDER: 1}, 0)[0], kind="stable")
    assert np.array_equal(permutation(3, 1, count, Draw.ORDER), expected)
