"""The emulator of the CUDA kernels: it knows the layouts, and finds each kind of mistake that it is there to find."""

import pytest
from cuda_emulator import emulated


@pytest.fixture(scope="module")
def checks():
    return emulated.build("checks")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "exchange", "overwrite", "mma bf16", "mma fp16", "ldmatrix mma", "ldmatrix.trans mma", "ldmatrix",
        "ldmatrix.trans", "numbers",
    ],
)  # fmt: skip
def test_what_is_right_passes(checks, name, seed):
    """Also: what a copy is told not to bring is zeros."""
    assert emulated.run(checks, name, seed) == "right\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no wait", r"thread \d+: reads shared memory at \d+, where a copy nobody has waited for will arrive"),
        ("wait for too few", "where a copy nobody has waited for will arrive"),
        ("no barrier", "where a copy nobody has waited for will arrive|race: (reads|writes) shared memory"),
        (
            "overwrite without barrier",
            "race: (reads|writes) shared memory at|where a copy nobody has waited for will arrive",
        ),
        ("half ends", r"deadlock.*\n  threads 0 to 31 wait for the barrier\n  threads 32 to 63 have ended"),
        ("lanes disagree", "threads 0 to 0 wait for the barrier\n  threads 1 to 1 wait for shuffle"),
        ("two operations", "while other lanes of its warp are at (shuffle|ldmatrix)"),
        ("ends early", "ends while its copies are under way"),
        ("beyond shared", "writes 16 bytes at 1024 of 1024 bytes of shared memory"),
        ("unaligned", "writes 16 bytes at the unaligned address"),
        ("beyond global", "AddressSanitizer: heap-buffer-overflow"),
    ],
)
def test_what_is_wrong_fails_in_every_order(checks, name, message):
    for seed in range(4):
        with pytest.raises(emulated.EmulationError, match=message):
            emulated.run(checks, name, seed)
