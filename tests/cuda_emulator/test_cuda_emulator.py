"""The emulator of the CUDA kernels knows the layouts and finds every kind of mistake that it should find."""

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
    """In "exchange" the copies that are not wanted deliver zeros."""
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


# ---------------------------------------------------------------------------------------------- Hopper's instructions


@pytest.fixture(scope="module")
def checks_sm90():
    return emulated.build("checks_sm90")


def test_a_step_of_a_hopper_kernel_passes(checks_sm90):
    """A bulk copy with swizzle and rows of zeros, both kinds of product, and a second copy to the same place."""
    for seed in range(10):
        assert emulated.run(checks_sm90, "right", seed) == "right\n"


def test_blocks_of_a_cluster_read_each_others_shared_memory(checks_sm90):
    for seed in range(5):
        assert emulated.run(checks_sm90, "cluster", seed) == "right\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "reads early",
            "race: reads another block's shared memory at [0-9]+, written since|which another block|which has ended",
        ),
        ("ends early", "which has ended|the block ends while other blocks of its cluster may read its shared memory"),
        ("writes again", "which another block of the cluster reads|another block's shared memory at [0-9]+, written"),
        ("reads beyond the cluster", "reads shared memory of block 2 of a cluster of 2"),
    ],
)
def test_a_mistake_in_a_cluster_is_found_in_every_order(checks_sm90, name, message):
    for seed in range(4):
        with pytest.raises(emulated.EmulationError, match=message):
            emulated.run(checks_sm90, name, seed)


def test_tensor_maps_are_kept(checks_sm90):
    assert emulated.run(checks_sm90, "kept maps", 0) == "right\n"


NEVER_FILLED = "deadlock.*\n  threads 0 to 127 wait for phase 0 of the mbarrier at [0-9]+ "
PRODUCT_READS = "writes shared memory at [0-9]+, which a product nobody has waited for reads"
HOPPER_MISTAKES = {
    "no fence after the init": "starts a bulk copy to an mbarrier without mbarrier_init_fence",
    "too many bytes expected": NEVER_FILLED,
    "too few bytes expected": NEVER_FILLED,
    "no barrier after the stores": "where no mbarrier is|race: reads shared memory|has stored without fence",
    "no fence after the stores": "which thread [0-9]+ has stored without fence_stores_for_products",
    "no wait for the tile": "where a copy nobody has waited for will arrive",
    "one warp waits for the tile": (
        "where a bulk copy has come that thread [0-9]+ has not waited for|nobody has waited for will arrive"
    ),
    "no fence before the product": "thread [0-9]+ issues a product without product_fence",
    "no wait for the product": None,  # the sums are NaN
    "touches the sums": "has touched accumulator 3 of a product under way",
    "touches the weights": "has changed registers that a product under way reads",
    "stores over the rows": PRODUCT_READS,
    "fills the tile too early": PRODUCT_READS,
    "no release": "threads 0 to 0 wait for phase 0 of the mbarrier at [0-9]+\n  threads 1 to 127 wait for phase 1",
    "one warp releases": f"{PRODUCT_READS}|race: writes shared memory",
    "no wait for the release": f"{PRODUCT_READS}|race: writes shared memory",
    "arrives too often": f"whose phase has all arrivals|{PRODUCT_READS}|race: writes shared memory",
    "tile not aligned": "starts a bulk copy to the unaligned address",
    "wrong step in the tile": None,
    "leaves a barrier": "the block ends with 32 arrivals at barrier 3 that nobody has waited for",
    "no registers left": "deadlock.*\n  threads 0 to 127 wait for registers",
    "never waits for the launch before": "ends without having waited for the previous launch",
}


@pytest.mark.parametrize("name", HOPPER_MISTAKES)
def test_a_mistake_with_hoppers_instructions_is_found_in_every_order(checks_sm90, name):
    for seed in range(4):
        if HOPPER_MISTAKES[name] is None:
            assert emulated.run(checks_sm90, name, seed) == "wrong\n"
        else:
            with pytest.raises(emulated.EmulationError, match=HOPPER_MISTAKES[name]):
                emulated.run(checks_sm90, name, seed)
