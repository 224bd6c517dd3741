"""The parity rule passes correct backends and fails backends with small errors."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from sce_fast.cli import main
from sce_fast.loss import reference
from sce_fast.loss.backends import BACKENDS, Backend
from sce_fast.loss.parity import KINDS, compare, make_inputs
from sce_fast.native import CPU

SMALL = ["parity", "--n", "5", "--k", "40", "--d", "16"]


def told(capsys, *options, status):
    """Run the command and return its output without the table's spacing."""
    with pytest.raises(SystemExit) if status else nullcontext() as exit_info:
        main([*SMALL, *map(str, options)])
    assert status == 0 or exit_info.value.code == status
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).replace("│", " ").split())


@pytest.fixture
def add_backend(monkeypatch):
    """Return a function that adds a backend to the table: reference.solve with its solution changed."""

    def add(change, refuses=lambda problem: None):
        def solve(problem):
            return change(reference.solve(problem))

        monkeypatch.setitem(BACKENDS, "wrong", Backend("wrong", refuses, solve))

    return add


def scaled(name, factor):
    return lambda solution: replace(solution, **{name: getattr(solution, name) * factor})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reference_holds(kind, dtype):
    inputs = make_inputs(kind, n=7, d=24, k=50, query_views=3, key_views=2, m=9).to(dtype)
    parity = compare("reference", inputs, row_offset=2)
    assert parity.holds
    assert parity.worst <= 1
    for error in vars(parity).values():
        assert error.allowed >= 2 * error.plain


@pytest.mark.parametrize(
    ("kind", "name", "factor"),
    [
        ("random", "rows", 1.00003),
        ("random", "gradient", 1.00005),
        ("converged", "positive_probability", 1.00003),
        ("random", "target_entropy", 1.0003),
    ],
)
def test_a_small_error_in_any_quantity_fails(kind, name, factor, add_backend):
    inputs = make_inputs(kind, n=7, d=24, k=50).to(torch.float32)
    add_backend(scaled(name, factor))
    parity = compare("wrong", inputs)
    assert parity.failures == [{"rows": "loss"}.get(name, name)]
    assert not parity.holds
    assert parity.worst > 1


def test_what_is_not_finite_fails_and_what_nobody_asked_for_is_not_looked_at(add_backend):
    inputs = make_inputs("random", n=7, d=24, k=50).to(torch.float32)
    add_backend(scaled("gradient", float("nan")))
    assert compare("wrong", inputs).failures == ["gradient"]
    add_backend(scaled("target_entropy", float("nan")))
    assert compare("wrong", inputs, coefficient=1.0).holds
    assert compare("wrong", inputs, coefficient=1.0, needs_statistics=True).failures == ["target_entropy"]


def test_the_table_shows_every_backend_dtype_and_kind(capsys, tmp_path):
    text = told(capsys, "--dtypes", "float32", "bfloat16", "--out", tmp_path / "parity.json", status=0)
    served = [backend for backend in BACKENDS if backend != "cpu" or not CPU.missing]
    for dtype in ("float32", "bfloat16"):
        for kind in KINDS:
            assert f"{dtype} {kind} reference" in text
    assert text.count("holds") == 6 * sum(f"random {name}" in text for name in served)
    assert "FAILS" not in text
    record = json.loads((tmp_path / "parity.json").read_text())
    assert record["settings"]["k"] == 40
    first = record["comparisons"][0]
    assert first["holds"]
    assert first["parity"]["loss"]["backend"] <= first["parity"]["loss"]["allowed"]


def test_a_wrong_backend_gives_exit_status_1(capsys, add_backend):
    add_backend(scaled("gradient", 1.01))
    text = told(capsys, "--dtypes", "float32", status=1)
    assert text.count("FAILS: gradient") == 3
    assert "float32 converged reference" in text  # the other backends are still compared
    assert told(capsys, "--dtypes", "float32", "--backends", "reference", status=0).count("holds") == 3


def test_the_worst_seed_is_shown(capsys, add_backend):
    calls = iter([1.0, 1.01, 1.0])
    add_backend(lambda solution: scaled("rows", next(calls))(solution))
    options = ["--dtypes", "float32", "--kinds", "random", "--backends", "wrong", "--seeds", 0, 1, 2]
    assert told(capsys, *options, status=1).count("FAILS: loss") == 1


def test_a_backend_that_raises_fails_and_the_others_go_on(capsys, add_backend):
    def broken(solution):
        raise RuntimeError("out of registers")

    add_backend(broken)
    text = told(capsys, "--kinds", "random", "--dtypes", "float32", status=1)
    assert "wrong FAILS: RuntimeError: out of registers" in text
    assert "reference" in text


def test_a_refused_backend_is_named_with_its_reason(capsys, add_backend):
    add_backend(lambda solution: solution, refuses=lambda problem: "it wants another GPU")
    text = told(capsys, "--kinds", "random", status=0)
    assert "wrong is not compared: it wants another GPU (float32, bfloat16)" in text
    text = told(capsys, "--kinds", "random", "--backends", "wrong", status=2)
    assert "backend='wrong' cannot serve this call: it wants another GPU" in text


def test_views_batch_keys_and_dtypes_reach_the_backend(capsys, add_backend):
    seen = []

    def look(problem):
        seen.append(problem)
        return None

    add_backend(lambda solution: solution, refuses=look)
    shapes = ["--query-views", 3, "--key-views", 2, "--batch-keys", 9, "--row-offset", 4, "--k", 0]
    settings = ["--temperature", 0.2, "--coefficient", 0, "--positive-target", "zero_logit"]
    options = ["--dtypes", "float32", "--candidate-dtype", "bfloat16", "--kinds", "random", "--backends", "wrong"]
    assert "3 × 2 views" in told(capsys, *shapes, *settings, *options, status=0)
    problem = seen[0]
    assert problem.query.shape == (3, 5, 16)
    assert problem.queue is None
    assert problem.batch_keys.shape == (2, 9, 16)
    assert (problem.query.dtype, problem.batch_keys.dtype) == (torch.float32, torch.bfloat16)
    assert (problem.temperature, problem.coefficient, problem.zero_logit, problem.row_offset) == (0.2, 0.0, True, 4)


def test_matmul_precision_is_set_for_the_comparison_only(capsys, add_backend):
    seen = []

    def look(problem):
        seen.append(torch.get_float32_matmul_precision())
        return None

    add_backend(lambda solution: solution, refuses=look)
    text = told(capsys, "--matmul-precision", "high", "--dtypes", "float32", "--kinds", "random", status=0)
    assert "precision 'high'" in text
    assert set(seen) == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", 0], "n=0: expected at least 1"),
        (["--k", -3], "k=-3: expected at least 0"),
        (["--k", 0], "no candidate besides the own key"),
        (["--temperature", 0], "temperature=0.0: expected a finite number > 0"),
        (["--coefficient", 2], "coefficient=2.0: expected a number in [0, 1]"),
        (["--batch-keys", 3], "row_offset=0: expected 0 to -2"),
        (["--backends", "refrence"], "did you mean 'reference'?"),
        (["--kinds", "rando"], "--kinds"),
        (["--dtypes", "float64"], "--dtypes"),
    ],
)
def test_bad_arguments_are_named(capsys, options, message):
    assert message in told(capsys, *options, status=2)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="kind='rando': expected one of 'random', 'clustered', 'converged'"):
        make_inputs("rando", n=2, d=2, k=2)


@pytest.mark.parametrize("m", [0, 12])
def test_rows_at_a_time_change_nothing(m):
    """The errors and the verdict are the same, on inputs for which no fast path is exact."""
    inputs = make_inputs("clustered", n=10, d=24, k=50, query_views=3, key_views=2, m=m).to(torch.bfloat16)
    offset = {"row_offset": 2} if m else {}
    whole = compare("reference", inputs, torch.float32, **offset)
    for rows in (1, 3, 10, 64):
        parts = compare("reference", inputs, torch.float32, rows_at_a_time=rows, **offset)
        for name, error in vars(whole).items():
            mine = getattr(parts, name)
            assert mine.backend == pytest.approx(error.backend, rel=0.1, abs=1e-7)
            assert mine.allowed == pytest.approx(error.allowed, rel=0.2, abs=1e-6)


def test_a_wrong_row_fails_whichever_part_it_is_in(add_backend):
    inputs = make_inputs("random", n=7, d=24, k=50).to(torch.float32)

    def spoil(solution):
        solution.rows[5] *= 1.0001
        return solution

    add_backend(spoil)
    assert compare("wrong", inputs, rows_at_a_time=3).failures == ["loss"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "k", "d", "dtype"),
    [(1024, 65536, 256, torch.bfloat16), (4096, 16384, 64, torch.float16), (256, 262144, 128, torch.bfloat16)],
)
def test_gpu_parity_at_real_sizes(gpu_backend, kind, n, k, d, dtype):
    inputs = make_inputs(kind, n=n, d=d, k=k).to(dtype, "cuda")
    parity = compare(gpu_backend, inputs, rows_at_a_time=512, needs_statistics=True)
    assert parity.holds, (parity.failures, parity)
