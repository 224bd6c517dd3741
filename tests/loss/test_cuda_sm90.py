"""What only the Hopper kernel has. test_cuda_parity.py tests the parity of both kernels."""

import dataclasses
import functools
import importlib.util
import itertools
import re
import shutil
from collections import Counter

import pytest
import torch

from cuda_emulator import emulated
from helpers.cuda import HALVES, assert_found, assert_same_bits, problem_of
from sce_fast.loss import cuda as native_cuda
from sce_fast.loss.backends import BACKENDS, Backend
from sce_fast.loss.parity import compare, make_inputs

TILES = {16: 128, 64: 128, 112: 128, 128: 128, 144: 112, 192: 112, 208: 80, 256: 80}
HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


@pytest.fixture(autouse=True)
def emulator(request):
    """Build the emulator for tests on a CPU; tests on a GPU do not wait for its compilation."""
    if request.node.get_closest_marker("gpu") is None:
        emulated.build("emulate")
    yield
    BACKENDS.pop("emulated", None)


def parity(
    inputs, seed=0, splits=0, executable=None, multiprocessors=emulated.MULTIPROCESSORS, tuning=native_cuda.DEFAULT,
    **options,
):  # fmt: skip
    solve = emulated.solver(
        seed, splits, kernel="sm90", executable=executable, multiprocessors=multiprocessors, tuning=tuning
    )
    BACKENDS["emulated"] = Backend("emulated", emulated.refuses, solve, automatic=False)
    return compare("emulated", inputs, **options)


# ---------------------------------------------------------------------------------------------- one tile


def one_tile(d, dtype, device="cpu"):
    """Return rows (64, D), three candidates fewer than a tile has, and weights as a softmax may give them."""
    generator = torch.Generator().manual_seed(d)
    rows, candidates = torch.randn(64, d, generator=generator), torch.randn(TILES[d] - 3, d, generator=generator)
    weights = torch.rand(64, TILES[d], generator=generator)
    return [tensor.to(device, dtype) for tensor in (rows, candidates, weights)]


def exact_products(rows, candidates, weights):
    tile = torch.nn.functional.pad(candidates.double(), (0, 0, 0, weights.shape[1] - len(candidates)))
    return rows.double() @ tile.T, weights.double() @ tile


@pytest.mark.parametrize("d", TILES)
@pytest.mark.parametrize("dtype", HALVES)
def test_each_product_of_one_tile(d, dtype):
    inputs = one_tile(d, dtype)
    for result, exact in zip(emulated.tile_products(*inputs), exact_products(*inputs), strict=True):
        torch.testing.assert_close(result.double(), exact, atol=1e-4, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_HOPPER, reason="torch sees no GPU of compute capability 9.0")
@pytest.mark.parametrize("d", TILES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("product", ["rows from shared memory", "weights from registers"])
def test_gpu_each_product_of_one_tile(cuda, d, dtype, product):
    inputs = one_tile(d, dtype, cuda)
    which = 0 if product == "rows from shared memory" else 1
    result, exact = native_cuda.tile_products(*inputs)[which], exact_products(*inputs)[which]
    torch.testing.assert_close(result.double(), exact, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(("dim", "tile"), [(256, 64), (128, 128)])
def test_descriptors_are_those_that_triton_makes_of_such_tiles(dim, tile):
    """Our descriptors and steps have Triton's bits for a TMA tile as the right operand of both products."""
    from helpers.triton_tiles import compile_tiles

    ptx = compile_tiles(dim, tile)
    bits = {"rows": set(), "columns": set()}
    for kind, definition in wgmma_tiles(ptx):
        bits[kind].add(definition)
    printed = emulated.run(emulated.build("checks_sm90"), "descriptors").split()
    rows, columns = int(printed[0]), int(printed[{64: 1, 80: 3, 128: 5}[tile]])
    # The leading offset of rows has no meaning; Triton leaves it 0.
    leading = 0x3FFF << 16
    steps = {box * tile * 128 // 16 + k * 2 for box in range(dim // 64) for k in range(4)}
    assert {value & ~leading for value in bits["rows"]} == {(rows & ~leading) + step for step in steps}
    assert bits["columns"] == {columns + n * 128 for n in range(tile // 16)}


def wgmma_tiles(ptx):
    """Yield, for each wgmma, the kind of its tile operand and the constant that is added to the tile's start."""
    definitions = dict(re.findall(r"^\s*(?:add|or)\.[sb]64 \t?(%rd\d+), %rd\d+, (\d+);", ptx, flags=re.M))
    for operands in re.findall(r"wgmma\.mma_async\S+ \{[^}]*\}, (.*);", ptx):
        from_registers = operands.startswith("{")
        tile = re.findall(r"%rd\d+", operands)[-1]
        assert operands.endswith("1, 1, 1" if from_registers else "1, 1, 0, 0")  # transposed or not
        yield "columns" if from_registers else "rows", int(definitions[tile])


# ---------------------------------------------------------------------------------------------- the whole kernel


@pytest.mark.parametrize(
    ("d", "n"), [(64, 70), (128, 40), *(pytest.param(*s, marks=pytest.mark.slow) for s in ((192, 33), (256, 40)))]
)
@pytest.mark.parametrize("splits", [1, 3])
def test_two_segments_own_keys_and_views(d, n, splits):
    """Students and teachers share a group of rows, the second is partly empty, tiles are masked for three reasons."""
    inputs = make_inputs("converged", n=n, d=d, k=300, query_views=2, key_views=1, m=n + 90, shared_batch_keys=True)
    inputs.batch_keys[61 : 61 + n] = inputs.key[0]
    result = parity(inputs.to(torch.bfloat16), d, splits, row_offset=61, needs_statistics=True)
    assert result.holds, result


@pytest.mark.parametrize("tiles", [1, 6, 13, *(pytest.param(tiles, marks=pytest.mark.slow) for tiles in (2, 5, 7))])
def test_any_number_of_tiles_against_the_stages_of_the_ring(tiles):
    """Without a gradient the students' group has one product per tile, the teachers' group two."""
    inputs = make_inputs("random", n=64, d=16, k=128 * tiles - 5).to(torch.bfloat16)
    full = parity(inputs, tiles, 1)
    assert full.holds, full
    solve = emulated.solver(tiles, 1, kernel="sm90")
    bare = solve(problem_of(inputs, gradient=False, statistics=False))
    assert torch.equal(bare.rows, solve(problem_of(inputs)).rows)


@pytest.mark.parametrize("multiprocessors", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 8))])
@pytest.mark.parametrize("float32_rows", [False, True])
def test_blocks_with_parts_of_several_blocks_of_rows(multiprocessors, float32_rows):
    """The rows come by TMA, or by loads where students and teachers share a group or the rows have another type."""
    inputs = make_inputs("clustered", n=75, d=64, k=700, query_views=2, key_views=2, m=99, shared_batch_keys=True)
    inputs = inputs.to(torch.bfloat16)
    if float32_rows:
        inputs = dataclasses.replace(inputs, query=inputs.query.float(), key=inputs.key.float())
    result = parity(inputs, multiprocessors, multiprocessors=multiprocessors, row_offset=17, needs_statistics=True)
    assert result.holds, result


@pytest.mark.parametrize(
    ("row_blocks", "tiles", "multiprocessors"), [(1, 3, 132), (16, 820, 132), (7, 5, 3), (200, 9, 132)]
)
def test_an_uneven_cut_gives_each_tile_to_one_block(row_blocks, tiles, multiprocessors):
    lines = emulated.run(emulated.build("emulate"), "cut", row_blocks, tiles, multiprocessors).splitlines()
    parts = [tuple(map(int, line.split())) for line in lines]  # block, block of rows, split, first tile, end
    found = {}
    for _block, row_block, split, begin, end in parts:
        splits = found.setdefault(row_block, [])
        assert split == len(splits)
        splits.append((begin, end))
    for splits in found.values():
        assert splits[0][0] == 0
        assert splits[-1][1] == tiles
        assert all(one[1] == other[0] for one, other in itertools.pairwise(splits))
    assert sorted(found) == list(range(row_blocks))
    costs = Counter()
    for block, _, _, begin, end in parts:
        costs[block] += end - begin + 2
    assert max(costs.values()) <= row_blocks * (tiles + 2) / multiprocessors + 4


@pytest.mark.parametrize("d", [64, *(pytest.param(d, marks=pytest.mark.slow) for d in (128, 256))])
def test_every_choice_has_the_same_bits(d):
    """Turns change only when the products run; an even and an uneven cut agree where both have the same splits."""
    inputs = make_inputs("random", n=64, d=d, k=600).to(torch.bfloat16)
    problem = problem_of(inputs)
    first = emulated.solver(kernel="sm90", multiprocessors=1)(problem)
    for turns, uneven in itertools.product((False, True), repeat=2):
        tuning = native_cuda.Tuning(turns, uneven)
        assert_same_bits(emulated.solver(1, kernel="sm90", multiprocessors=1, tuning=tuning)(problem), first)


@pytest.mark.parametrize(
    ("splits", "d"),
    [(2, 64), (3, 128), *(pytest.param(*s, marks=pytest.mark.slow) for s in ((4, 256), (8, 64), (17, 128)))],
)
def test_splits_added_in_clusters(splits, d):
    """Clusters of 2, 2, 4, 8 and 8; the second block of rows is partly empty, as is a split."""
    inputs = make_inputs("converged", n=40, d=d, k=300, query_views=2, key_views=2, m=140, shared_batch_keys=True)
    inputs.batch_keys[61:101] = inputs.key[0]
    tuning = native_cuda.Tuning(clusters=True)
    result = parity(inputs.to(torch.bfloat16), d, splits, tuning=tuning, row_offset=61, needs_statistics=True)
    assert result.holds, result


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_HOPPER, reason="torch sees no GPU of compute capability 9.0")
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("name", ["turns", "uneven", "clusters"])
@pytest.mark.parametrize("value", [False, True])
def test_gpu_every_choice_is_right(cuda, d, name, value):
    """More blocks of rows than fit in one wave, and few; the last block of rows is partly empty."""
    solve = functools.partial(native_cuda.solve, kernel="sm90", tuning=native_cuda.Tuning(**{name: value}))
    BACKENDS["emulated"] = Backend("emulated", native_cuda.refuses, solve, automatic=False)
    for n in (77, 301, 10000):
        inputs = make_inputs("clustered", n=n, d=d, k=5003).to(torch.bfloat16, cuda)
        result = compare("emulated", inputs, rows_at_a_time=512, needs_statistics=True)
        assert result.holds, result


def test_a_choice_that_is_not_compiled_is_refused():
    turns, halves = native_cuda.Tuning(turns=True), make_inputs("random", n=3, d=192, k=20).to(torch.bfloat16)
    with pytest.raises(emulated.EmulationError, match="turns is yes and clusters is no; expected the defaults"):
        parity(halves, tuning=turns)
    halves = make_inputs("random", n=3, d=64, k=20).to(torch.float16)
    with pytest.raises(emulated.EmulationError, match="turns is no and clusters is no; expected the defaults"):
        parity(halves, tuning=native_cuda.Tuning(turns=False))


def test_choice_of_the_kernel():
    def chosen(wanted, gpu):
        return int(emulated.run(emulated.build("emulate"), "kernel", native_cuda.KERNELS[wanted], gpu, 0))

    assert [chosen("best", gpu) for gpu in (80, 89, 90, 100, 120)] == [1, 1, 2, 1, 1]
    assert [chosen("sm80", gpu) for gpu in (80, 90, 100)] == [1, 1, 1]
    assert chosen("sm90", 90) == 2
    with pytest.raises(
        emulated.EmulationError, match=r"kernel is sm90, and the GPU has compute capability 10\.0, expected 9\.0"
    ):
        chosen("sm90", 100)


# ---------------------------------------------------------------------------------------------- changed kernels


def changed(folder, right, wrong, name="sm90_forward_pass.h"):
    """Build the emulator of the kernels with one text replaced and only the shape for D 64."""
    shutil.copytree(emulated.KERNELS, folder / "cuda")
    for header in emulated.KERNELS.parent.glob("*.h"):
        shutil.copy(header, folder)
    for path in (folder / "cuda").iterdir():
        text = path.read_text()
        if path.name == name:
            assert text.count(right) == 1
            text = text.replace(right, wrong)
        if path.suffix == ".cu":
            text = re.sub(r"    case [1-4]: return launch_.*\n", "", text)
        path.write_text(text)
    return emulated.build("emulate", folder / "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("stages", [2, 3, 7])
def test_any_number_of_stages(stages, tmp_path):
    right = "constexpr HopperConfig c = kHopperConfigs[kConfig];"
    executable = changed(tmp_path, right, f"constexpr HopperConfig c{{64, 128, {stages}, true}};")
    for tiles in (1, 2, 3, 4, 9):
        inputs = make_inputs("clustered", n=50, d=64, k=128 * tiles, query_views=2, key_views=2).to(torch.bfloat16)
        for seed in range(2):
            assert parity(inputs, seed, 1, executable).holds


# The right text, the wrong text, and the emulator's message; None: the numbers are wrong.
MISTAKES = {
    "no wait for a tile": (
        "ptx::mbarrier_wait(at_.filled(turn.stage), turn.parity);\n      if (takes_turns)", "if (takes_turns)",
        "where a bulk copy has come that thread|nobody has waited for will arrive",
    ),
    "wrong parity": ("turn.parity ^ 1);", "turn.parity);", "deadlock.*wait for phase 0 of the mbarrier"),
    "no wait for a free place": (
        "ptx::mbarrier_wait(at.emptied(turn.stage), turn.parity ^ 1);", "",
        "which a product nobody has waited for reads|race: writes|a copy will arrive|whose phase has all arrivals",
    ),
    "released while the weights' product runs": (
        "      if (kOutput) finish_outputs();\n      release(at_, before);\n",
        "      release(at_, before);\n      if (kOutput) finish_outputs();\n",
        "which a product nobody has waited for reads|race: writes shared memory",
    ),
    "released by half of the warps": (
        "if (ptx::thread_index() % kWarpSize == 0) ptx::mbarrier_arrive",
        "if (ptx::thread_index() % 64 == 0) ptx::mbarrier_arrive", "deadlock",
    ),
    "product read too early": ("ptx::product_wait<kOutput ? 1 : 0>();", "ptx::product_wait<2>();", "has touched accum"),
    "weights rounded too early": (
        "      if (kOutput) finish_outputs();\n      release(at_, before);\n", "",
        "has changed registers that a product",
    ),
    "no fence after the rows": (
        "  ptx::fence_stores_for_products();\n}", "}", "has stored without fence_stores_for_products", "sm90_tiles.h",
    ),
    "rows without a barrier": (
        "  ptx::named_barrier(kRowsOfFirst + group, kGroupThreads);\n", "", "race: reads shared memory",
    ),
    "a turn too many": ("(consumer_ == 0 || t + 1 < range.end)", "true", "128 arrivals at barrier 1 that nobody has"),
    "nobody begins": (
        "if (takes_turns && consumer_ == 1) ptx::named_barrier_arrive(kTurnOfFirst, 2 * kGroupThreads);", "",
        "deadlock.*wait for barrier 1",
    ),
    "sums not rescaled": ("if (!kFixed) rescale(factors);", "", None),
    "mask forgotten": ("candidate != own);", "candidate != own + 1);", None),
    "wrong step in the tile": ("n * 16 * ptx::kBoxRowBytes", "n * 8 * ptx::kBoxRowBytes", None, "sm90_tiles.h"),
    "swizzle forgotten": ("((chunk ^ row) % 8 << 4)", "(chunk % 8 << 4)", None, "sm90_tiles.h"),
    "combined too early": ("  ptx::wait_for_launches();\n", "", "without having waited for the", "combine.cu"),
}  # fmt: skip


# In a launch whose second block has parts of two blocks of rows, longer than the ring; the second block of rows has no
# rows for the second group.
MISTAKES_BETWEEN_PARTS = {
    "rows come while the last ones are read": (
        "if (number > 0) ptx::named_barrier(kRowsOfFirst + group, kGroupThreads);", "",
        "which a product nobody has waited for reads|race: writes shared memory|a copy will arrive",
    ),
    "the last tile of a part is kept": (
        "    release(at_, turn.stage);\n    turn.advance();\n", "    turn.advance();\n", "deadlock",
    ),
    "a group without rows keeps the tiles": ("      skip_tiles(at, range, turn);\n", "", "deadlock"),
    "the rows' phase is forgotten": ("if (leads) ptx::mbarrier_arrive(at.rows_filled(group));", "", "waited for"),
    "parts overlap": ("* block / blocks;", "* block / blocks - block % 2;", None, "pass.h"),
    "split of another block": ("block - pass.cut.first_block(row_block)", "0", "deadlock", "rows.h"),
}  # fmt: skip


CLUSTER_BARRIER = "    ptx::cluster_barrier();\n"
ADD = "    add_cluster<kDim>(pass, {at.start}, parts.begin * kHopperRows, z, split_of(pass, parts.begin));\n"
MISTAKES_IN_CLUSTERS = {
    "reads before the others have stored": (
        CLUSTER_BARRIER + ADD, ADD,
        "race: reads another block's shared memory|which another block of the cluster reads",
    ),
    "ends while others read": (
        ADD + CLUSTER_BARRIER, ADD, "which has ended|ends while other blocks of its cluster may read",
    ),
    "stores over tiles that are read": (
        "  if constexpr (kCluster) {\n    ptx::named_barrier(kTilesRead, 2 * kGroupThreads);\n",
        "  if constexpr (kCluster) {\n",
        "which a product nobody has waited for reads|race: writes shared memory|a copy will arrive|multiplies shared",
    ),
    "rows of another block": ("ptx::cluster_rank()) * count", "0) * count", None, "sm90_cluster.h"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES_IN_CLUSTERS)
def test_a_mistake_in_a_cluster_is_found(mistake, tmp_path):
    right, wrong, message, *name = MISTAKES_IN_CLUSTERS[mistake]
    executable = changed(tmp_path, right, wrong, *name)
    inputs = make_inputs("clustered", n=64, d=64, k=900).to(torch.bfloat16)
    options = dict(seed=1, splits=2, executable=executable, tuning=native_cuda.Tuning(clusters=True))
    assert_found(message, lambda: parity(inputs, **options))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES_BETWEEN_PARTS)
def test_a_mistake_between_the_parts_of_a_block_is_found(mistake, tmp_path):
    right, wrong, message, *name = MISTAKES_BETWEEN_PARTS[mistake]
    executable = changed(tmp_path, right, wrong, *name)
    # The first group of the first block has students and teachers, so its rows come by loads; the second's come by TMA.
    inputs = make_inputs("clustered", n=30, d=64, k=3200, query_views=1, key_views=4).to(torch.bfloat16)
    options = dict(seed=1, multiprocessors=3, executable=executable)
    assert_found(message, lambda: parity(inputs, **options))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_kernel_is_found(mistake, tmp_path):
    right, wrong, message, *name = MISTAKES[mistake]
    executable = changed(tmp_path, right, wrong, *name)
    inputs = make_inputs("converged", n=50, d=64, k=1400, m=60)
    inputs.batch_keys[3:53] = inputs.key
    # Later candidates are nearer, so the running maximum rises.
    inputs.queue[-300:] = inputs.key[:1]
    options = dict(row_offset=3, temperature=0.01, needs_statistics=True)
    assert_found(message, lambda: parity(inputs.to(torch.bfloat16), 1, 1, executable, **options))
