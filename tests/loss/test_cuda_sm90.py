"""What only the Hopper kernel has. test_cuda_parity.py tests the parity of both kernels."""

import importlib.util
import re
import shutil

import pytest
import torch

from cuda_emulator import emulated
from helpers.cuda import HALVES, problem_of
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


def parity(inputs, seed=0, splits=0, executable=None, **options):
    solve = emulated.solver(seed, splits, kernel="sm90", executable=executable)
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


@pytest.mark.parametrize("tiles", [1, 2, 5, 6, 7, 13])
def test_any_number_of_tiles_against_the_stages_of_the_ring(tiles):
    """Without a gradient the students' group has one product per tile, the teachers' group two."""
    inputs = make_inputs("random", n=64, d=16, k=128 * tiles - 5).to(torch.bfloat16)
    full = parity(inputs, tiles, 1)
    assert full.holds, full
    solve = emulated.solver(tiles, 1, kernel="sm90")
    bare = solve(problem_of(inputs, gradient=False, statistics=False))
    assert torch.equal(bare.rows, solve(problem_of(inputs)).rows)


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


def changed(folder, right, wrong, name="sm90_forward_pass.cu"):
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
            text = re.sub(r"    case [1-4]: return launch_config.*\n", "", text)
        path.write_text(text)
    return emulated.build("emulate", folder / "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("stages", [2, 3, 7])
def test_any_number_of_stages(stages, tmp_path):
    right = "constexpr HopperConfig c = kHopperConfigs[kConfig];"
    executable = changed(tmp_path, right, f"constexpr HopperConfig c{{64, 128, {stages}}};")
    for tiles in (1, 2, 3, 4, 9):
        inputs = make_inputs("clustered", n=50, d=64, k=128 * tiles, query_views=2, key_views=2).to(torch.bfloat16)
        for seed in range(2):
            assert parity(inputs, seed, 1, executable).holds


# The right text, the wrong text, and the emulator's message; None: the numbers are wrong.
MISTAKES = {
    "no wait for a tile": (
        "ptx::mbarrier_wait(at_.filled(turn.stage), turn.parity);", "",
        "where a bulk copy has come that thread|nobody has waited for will arrive",
    ),
    "wrong parity": ("turn.parity ^ 1);", "turn.parity);", "deadlock.*wait for phase 0 of the mbarrier"),
    "no wait for a free place": (
        "ptx::mbarrier_wait(at.emptied(turn.stage), turn.parity ^ 1);", "",
        "which a product nobody has waited for reads|race: writes|a copy will arrive|whose phase has all arrivals",
    ),
    "released while the weights' product runs": (
        "      if (kOutput) finish_outputs();\n      release(before);\n",
        "      release(before);\n      if (kOutput) finish_outputs();\n",
        "which a product nobody has waited for reads|race: writes shared memory",
    ),
    "released by half of the warps": (
        "if (lane() == 0) ptx::mbarrier_arrive",
        "if (ptx::thread_index() % 64 == 0) ptx::mbarrier_arrive", "deadlock",
    ),
    "product read too early": ("ptx::product_wait<kOutput ? 1 : 0>();", "ptx::product_wait<2>();", "has touched accum"),
    "weights rounded too early": (
        "      if (kOutput) finish_outputs();\n      release(before);\n", "", "has changed registers that a product",
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
    if message is None:
        result = parity(inputs.to(torch.bfloat16), 1, 1, executable, **options)
        assert not result.holds, result
    else:
        with pytest.raises(emulated.EmulationError, match=f"(?s){message}"):
            parity(inputs.to(torch.bfloat16), 1, 1, executable, **options)
