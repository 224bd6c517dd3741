"""The costs of dtypes: loops of machine code, casts, and the errors of rounded queues."""

import dataclasses

import pytest
import torch

from sce_fast.benchmarks import dtypes, queue
from sce_fast.benchmarks.acceptance import dtypes as acceptance
from sce_fast.benchmarks.acceptance.supervise import Events, NotRun, read_lines
from sce_fast.benchmarks.dtypes import MIXES, Code, Mix
from sce_fast.loss import reference
from sce_fast.loss.parity import make_inputs
from sce_fast.loss.problem import checked_problem

SASS = """
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;      /* 0x1 */
        /*0020*/                   IADD3 R1, R1, 0x1, RZ ;               /* 0x1 */
        /*0030*/              @!P0 BRA 0x20 ;                            /* 0x1 */
        /*0040*/                   HGMMA.64x64x16.F32.BF16 R8, gdesc[UR8], R8 ;
        /*0050*/                   LDS R9, [R3] ;
        /*0060*/               @P1 BRA 0x50 ;
        /*0070*/               @P2 BRA 0x90 ;
        /*0080*/                   MUFU.EX2.FTZ R9, R9 ;
        /*0090*/              @!P3 BRA 0x40 ;
        /*00a0*/                   UTCHMMA gdesc[UR8], gdesc[UR10], tmem[UR4], UPT ;
        /*00b0*/                   EXIT ;
        /*00c0*/                   BRA 0x20 ;
        /*00d0*/                   BRA 0xd0;
"""


def test_the_loop_that_multiplies_holds_its_inner_loops_and_branches():
    assert dtypes.loops(SASS) == [["HGMMA.64x64x16.F32.BF16", "LDS", "BRA", "BRA", "MUFU.EX2.FTZ", "BRA"]]


def test_the_products_of_a_mix_are_those_of_the_candidates():
    assert [mix.product_name for mix in MIXES] == ["bfloat16", "tf32x3", "tf32", "float16", "bfloat16", "tf32"]
    assert str(MIXES[0]) == "rows float32, queue bfloat16"
    assert len({str(mix) for mix in MIXES}) == len(MIXES)
    same = Mix(torch.float16, torch.bfloat16, batch_keys=torch.bfloat16)
    assert same.product == torch.bfloat16
    inputs = same.inputs(3, 20, 8, "cpu")
    assert (inputs.query.dtype, inputs.queue.dtype) == (torch.float16, torch.bfloat16)
    assert (inputs.batch_keys.dtype, len(inputs.batch_keys)) == (torch.bfloat16, dtypes.BATCH_KEYS)


def test_casts_are_counted_as_bytes_read_and_written():
    assert dtypes.cast_bytes(Mix(torch.bfloat16, torch.bfloat16), 10, 100, 8) == 0
    assert dtypes.cast_bytes(Mix(torch.float32, torch.bfloat16), 10, 100, 8) == 2 * 10 * 8 * (4 + 2)
    whole_queue = Mix(torch.float32, torch.bfloat16, batch_keys=torch.float32)
    assert dtypes.cast_bytes(whole_queue, 10, 100, 8) == 100 * 8 * (2 + 4)


def test_the_tables_have_every_mix_and_join_mixes_with_the_same_code():
    code = Code(90, str(MIXES[0]), 128, 64, 8, 232, 0, "HGMMA", 24, 7, 32, 379)
    assert code.instructions_per_pair == pytest.approx(32 * 8 * 379 / (128 * 64))
    text = dtypes.code_table([code, dataclasses.replace(code, mix="b"), dataclasses.replace(code, mix="c", products=9)])
    assert f"| sm_90 | {MIXES[0]}; b | 128 × 64 | 232 (0) | HGMMA | 24, 7, 32, 379 | 12 |" in text
    assert len(text.splitlines()) == 4
    text = dtypes.traffic_table(1024, 65536, 256, [])
    assert "| float32 | bfloat16 | – | bfloat16 | 33.6 | 3.1 | not yet measured |" in text
    assert len(text.splitlines()) == 2 + len(MIXES)
    measured = dtypes.Time(str(MIXES[0]), "triton", 3e-4, 2.5e-4)
    assert "| float32 | bfloat16 | – | bfloat16 | 33.6 | 3.1 | 250.0 |" in dtypes.traffic_table(
        1024, 65536, 256, [measured]
    )


@pytest.mark.slow
def test_the_machine_code_of_a_mix_is_counted():
    pytest.importorskip("triton")
    code = dtypes.code_of(MIXES[0], 64, 90)
    assert (code.spilled_bytes, code.architecture) == (0, 90)
    assert "HGMMA" in code.product
    # two products of 128 rows, 128 candidates and 64 values by 8 warps; an exponential for each thread's share of pairs
    assert code.exponentials == code.block_rows * code.block_candidates // (32 * code.warps)
    assert 0 < code.products < code.instructions


def test_the_errors_of_a_queue_come_from_rounding_alone():
    inputs = make_inputs("random", n=5, k=40, d=8).to(torch.float32)
    problem = checked_problem(inputs.query.double().requires_grad_(), inputs.key.double(), inputs.queue.double())
    exact = reference.solve(problem)
    rows, gradient = queue._exact(inputs, torch.float32, torch.float32, 0.1, 0.05)
    torch.testing.assert_close(rows, exact.rows)
    torch.testing.assert_close(gradient[None], exact.gradient)
    coarser = [queue._exact(inputs, *dtypes, 0.1, 0.05)[1] for dtypes in queue.CASES]
    errors = [float((other - gradient).norm()) for other in coarser]
    assert errors[0] == 0
    assert errors[1] > errors[3] > 0  # bfloat16 is coarser than float16
    assert errors[2] != errors[1]


def test_every_mix_is_measured_and_compared(tmp_path):
    events = Events(tmp_path / "events.jsonl")
    items = acceptance.dtype_items("cpu", events)
    assert list(items) == [str(mix) for mix in MIXES]
    data = items[str(MIXES[0])]()
    assert data["default"]
    assert data["may_be_default"]
    assert [(r["backend"], 0 < r["worst"] <= 1, r["graph"]) for r in data["results"]] == [("cpu", True, None)]
    assert [line["at"] for line in read_lines(events.path)] == ["cpu"]
    assert [acceptance.may_be_default(mix) for mix in MIXES] == [True, True, False, True, False, False]


def test_a_mix_that_no_backend_serves_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setitem(acceptance.BACKENDS, "cpu", ("triton",))
    with pytest.raises(NotRun, match="triton: the inputs are on cpu; move them to an NVIDIA GPU"):
        acceptance.dtype_items("cpu", Events(tmp_path / "events.jsonl"))[str(MIXES[0])]()
