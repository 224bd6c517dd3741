"""Test that the compile gate passes clean kernels and fails kernels that spill, are too large or are not listed."""

import importlib.util
import json
import shutil
import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from sce_fast.benchmarks import compile_gate as kernels
from sce_fast.benchmarks.compile_gate import Kernel
from sce_fast.benchmarks.machine_code import faults_of_code, lost_speed, overlapped_exponentials

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")

SOURCE = """
namespace sce_fast {
namespace {
template <class T, bool kFlag, int kSize>
__global__ void many_values(const T* from, T* to, int step) {
  T values[kSize], sum = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) values[i] = from[i * step];
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum += values[i] * values[(i * 7 + r) % kSize];
  to[threadIdx.x] = sum;
}
INSTANCE
}  // namespace
__global__ void reverse(const float* from, float* to) {
  __shared__ float all[64];
  all[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  to[threadIdx.x] = all[63 - threadIdx.x];
}
}  // namespace sce_fast
"""
INSTANCE = "template __global__ void many_values<float, true, 64>(const float*, float*, int);\n"

REVERSE = {"kernel": "reverse", "shared_bytes": 1000}
MANY = {"kernel": "many_values", "size": 64, "threads": 32, "shared_bytes": 2000}


def write_sources(folder, source=SOURCE, listed=(REVERSE, MANY), machine_code=("80",), shared_kib=None):
    (folder / "kernels.cu").write_text(source.replace("INSTANCE", INSTANCE))
    about = {"machine_code": list(machine_code), "ptx": ["80"], "shared_kib": shared_kib or {"80": 163, "86": 99}}
    (folder / "architectures.json").write_text(json.dumps(about))
    prints = "".join(f"  std::puts({json.dumps(json.dumps(line))});\n" for line in listed)
    (folder / "list_kernels.cpp").write_text(f"#include <cstdio>\nint main() {{\n{prints}}}\n")
    return folder


@needs_nvcc
def test_clean_kernels_pass_and_are_measured(tmp_path, capsys):
    out = tmp_path / "record.json"
    assert kernels.main(which="cuda", sources=write_sources(tmp_path), out=out)
    text = capsys.readouterr().out
    assert "2 CUDA kernels: no spills, shared memory within the limits" in text
    measured = {kernel["name"]: kernel for kernel in json.loads(out.read_text())["kernels"]}
    assert measured["reverse"]["shared_bytes"] == 64 * 4 + 1000
    assert measured["many_values"]["variant"] == "<float, true, 64>"
    assert measured["many_values"]["shared_bytes"] == 2000
    assert 32 < measured["many_values"]["registers"] <= 255
    assert measured["many_values"]["spill_bytes"] == 0


@needs_nvcc
def test_a_spill_fails(tmp_path, capsys):
    sources = write_sources(tmp_path)
    assert not kernels.main(which="cuda", sources=sources, nvcc_flags=("-maxrregcount=32",))
    text = capsys.readouterr().out
    assert "1 faults\nsm_80 many_values <float, true, 64>: spills " in text


@needs_nvcc
def test_a_spill_in_a_function_that_is_not_inlined_fails(tmp_path, capsys):
    body = SOURCE.replace("__global__ void many", "__device__ __noinline__ void many").replace(
        "INSTANCE", "__global__ void caller(const float* f, float* t, int s) { many_values<float, true, 64>(f, t, s); }"
    )
    sources = write_sources(tmp_path, body, [REVERSE, {"kernel": "caller", "shared_bytes": 0}])
    assert not kernels.main(which="cuda", sources=sources, nvcc_flags=("-maxrregcount=32",))
    text = capsys.readouterr().out
    assert "function        0" in text
    assert "many_values <float, true, 64>: spills " in text


@needs_nvcc
def test_more_shared_memory_than_the_smallest_gpu_of_the_code_has_fails(tmp_path, capsys):
    too_much = {**REVERSE, "shared_bytes": 100 << 10}
    assert not kernels.main(which="cuda", sources=write_sources(tmp_path, listed=[too_much, MANY]))
    text = capsys.readouterr().out
    taken, limit = (100 << 10) + 256, 99 << 10
    assert f"1 faults\nsm_86 reverse: takes {taken} bytes of shared memory, a block may have {limit}" in text


@needs_nvcc
def test_what_is_not_accounted_for_fails(tmp_path, capsys):
    sources = write_sources(tmp_path, listed=[{**MANY, "size": 32}], shared_kib={"80": 163, "90": 227})
    assert not kernels.main(which="cuda", sources=sources)
    text = capsys.readouterr().out
    assert "sm_80 reverse: list_kernels does not state its dynamic shared memory" in text
    assert '"size": 32' in text
    assert "which was not compiled for sm_80" in text
    assert "sm_90: runs no machine code of sm_80" in text
    assert "no GPU's default" in text


@needs_nvcc
def test_code_that_does_not_compile_is_an_error_with_the_compilers_words(tmp_path):
    with pytest.raises(RuntimeError, match=r'identifier "missing" is undefined'):
        kernels.main(which="cuda", sources=write_sources(tmp_path, "__global__ void k() { missing(); }"))


@pytest.mark.slow
@needs_nvcc
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton brings the disassembler")
def test_a_hopper_kernel_without_hoppers_instructions_fails(tmp_path, capsys):
    """A file for sm_90a alone is compiled for no other architecture, and sm_90 runs it."""
    sources = write_sources(tmp_path, shared_kib={"80": 163, "90": 227})
    about = json.loads((sources / "architectures.json").read_text())
    about.update(machine_code=["80", "90"], machine_code_of={"kernels.cu": ["90a"]})
    (sources / "architectures.json").write_text(json.dumps(about))
    (sources / "other.cu").write_text("namespace sce_fast { __global__ void reverse(float* x) { *x = -*x; } }")
    assert not kernels.main(which="cuda", sources=sources)
    text = capsys.readouterr().out
    for name in ("many_values <float, true, 64>", "reverse"):
        for instruction in ("HGMMA", "UTMALDG"):
            assert f"sm_90a {name}: its machine code lacks {instruction}" in text
    assert "sm_90 reverse: its machine code" not in text


def sass(*instructions):
    return "Function : f\n" + "".join(f"        /*0000*/  {line} ;\n" for line in instructions)


@pytest.mark.parametrize(("before", "after"), [(40, 0), (42, 3), (39, 1), (0, 40)])
def test_a_forward_pass_that_waits_before_its_exponentials_fails(before, after):
    """The loop comes after the product of the first tile, whose exponentials nothing overlaps."""
    wait, others = "WARPGROUP.DEPBAR.LE gsb0, 0x{}", ["HGMMA.64x80x16", "UTMALDG.3D"]
    first, exponential = [wait.format(0), *["MUFU.EX2 R1, R1"] * 50], "MUFU.EX2 R0, R0"
    loop = [wait.format(1), *[exponential] * before, wait.format(0), *[exponential] * after]
    text = sass(*others, *first, *loop, wait.format(0))
    assert overlapped_exponentials(text) == before
    faults = faults_of_code("sm90_forward_pass", "<BFloat16, true, 256, 80, 4>", text, "90a")
    expected = f"{before} of 40 exponentials of a tile run before the wait for the last tile's product"
    assert faults == (() if before >= 40 else (expected,))
    assert faults_of_code("sm90_products", "<BFloat16, 256, 80>", text, "90a") == ()


def test_every_message_of_ptxas_about_lost_speed_is_a_complaint():
    lost = "ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized due to …"
    report = f"ptxas info    : Used 168 registers\n{lost}\n{lost}\nptxas info    : setmaxnreg ignored to maintain …"
    assert lost_speed(report) == (f"ptxas says: {lost}", "ptxas says: ptxas info    : setmaxnreg ignored to maintain …")


def test_an_empty_folder_is_an_error(tmp_path):
    write_sources(tmp_path)
    (tmp_path / "kernels.cu").unlink()
    with pytest.raises(ValueError, match=r"contains no \.cu file"):
        kernels.main(which="cuda", sources=tmp_path)


def test_triton_kernels_are_held_to_the_same(monkeypatch, capsys, tmp_path):
    class Compiled(NamedTuple):
        architecture: int
        kernel: str
        variant: str
        registers: int
        shared_bytes: int
        spilled_bytes: int

    def compile_all(jobs):
        for architecture in (80, 90, 100):
            yield Compiled(architecture, "forward_pass", "D 128, bf16", 168, 100 << 10, 0)
            yield Compiled(architecture, "forward_pass", "D 256, bf16", 255, 164 << 10, 8 if architecture == 90 else 0)

    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sce_fast.kernels.compile_offline", SimpleNamespace(compile_all=compile_all))
    monkeypatch.setattr(
        "sce_fast.kernels.compile_offline", sys.modules["sce_fast.kernels.compile_offline"], raising=False
    )
    sources = write_sources(tmp_path, shared_kib={"80": 163, "90": 227, "100": 227})
    assert not kernels.main(which="triton", sources=sources)
    text = capsys.readouterr().out
    assert "6 Triton kernels: 2 faults" in text
    assert (
        f"sm_80 forward_pass D 256, bf16: takes {164 << 10} bytes of shared memory, a block may have {163 << 10}"
        in text
    )
    assert "sm_90 forward_pass D 256, bf16: spills 8 bytes" in text


@pytest.mark.parametrize(("registers", "passes"), [(160, False), (168, True), (176, False), (None, True)])
def test_the_hopper_kernel_has_the_registers_that_it_shares_out(registers, passes):
    """registers is None for a function of the kernel that is not inlined."""
    kernel = Kernel("sm90_forward_pass.cu", "90a", "sm90_forward_pass", "<BFloat16, true, 64, 128, 6>", registers, 0, 0)
    fault = f"{kernel.label}: has {registers} registers a thread at launch, and setmaxnreg counts on 168"
    assert kernels.faults_of(kernel, {"90": 227 << 10}) == ([] if passes else [f"sm_90a {fault}"])
    other = Kernel("combine.cu", "90", "combine_kernel", "", registers, 0, 0)
    assert kernels.faults_of(other, {"90": 227 << 10}) == []


def test_a_pass_that_was_compiled_to_nothing_is_a_fault():
    kernel = Kernel("kernels/forward_pass.py", "100", "forward_pass_kernel", "D=512", 4, 0, 0)
    (fault,) = kernels.faults_of(kernel, {"100": 227 << 10})
    assert "has 4 registers a thread: it was compiled to nothing" in fault
    (fault,) = kernels.faults_of(Kernel("triton", "100", "combine_kernel", "D=512", 4, 0, 0), {"100": 227 << 10})
    assert "has 4 registers a thread: it was compiled to nothing" in fault


@pytest.mark.parametrize(
    ("demangled", "parts"),
    [
        ("void a::(anonymous namespace)::k<a::B, (bool)1, (int)4>(a::P)", ("k", "<B, 1, 4>")),
        ("void a::k<a::B, true, 64>(a::P)", ("k", "<B, true, 64>")),
        ("a::(anonymous namespace)::k(a::P, int)", ("k", "")),
        ("plain_c", ("plain_c", "")),
    ],
)
def test_names_are_shortened(demangled, parts):
    assert kernels._split(demangled) == parts


def test_a_gpu_runs_code_of_its_own_major_version():
    assert kernels._code_for("86", {"80", "90"}) == "80"
    assert kernels._code_for("103", {"100", "120"}) == "100"
    assert kernels._code_for("89", {"86", "80"}) == "86"
    assert kernels._code_for("120", {"100", "90"}) is None


def test_variants_are_told_apart_by_their_last_arguments():
    def kernel(variant):
        return Kernel("a.cu", "80", "pass", variant, 1, 0, 0)

    line = {"kernel": "pass", "dim": 64, "tile": 32, "threads": 4, "shared_bytes": 1}
    assert kernels._is_listed_as(kernel("<BFloat16, true, 64, 32>"), line)
    assert kernels._is_listed_as(kernel(""), line)
    assert not kernels._is_listed_as(kernel("<BFloat16, true, 64, 16>"), line)
    assert not kernels._is_listed_as(kernel("<BFloat16, true, 64, 32>"), {**line, "kernel": "other"})
