"""The compile gate: build every GPU kernel for its architectures, without a GPU, and check its resources.

    make kernels                                    the same as python -m benchmarks.compile_gate

The gate prints registers, shared memory and spills of each kernel of csrc/cuda (nvcc) and of kernels/ (Triton). The
exit status is 1 if a kernel
    - spills registers;
    - takes more shared memory than a block of its GPU may have, or list_kernels.cpp does not state its shared memory;
    - was compiled to nothing;
    - is for Hopper and lacks Hopper's instructions, or has other registers than it shares out between warpgroups;
    - is Hopper's forward pass and waits for the outputs of a tile before the exponentials of the next tile;
    - is compiled by ptxas with a message C75.. (serialised products) or with setmaxnreg ignored.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sce_fast.benchmarks.machine import find_tool, machine
from sce_fast.benchmarks.machine_code import INSTRUCTIONS, faults_of_code, lost_speed
from sce_fast.benchmarks.record import write_record

CUDA_SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
# Registers per thread at launch of a kernel that moves registers between warpgroups: an even share of the register file
# for 384 threads, in steps of 8. With fewer, a warpgroup would wait for ever for registers that no other gives back.
REGISTERS = {"sm90_forward_pass": 65536 // 384 // 8 * 8}
# If tensor memory does not suffice, Triton reports no error and compiles a kernel without code.
FEWEST_REGISTERS = 8
# Keys of a line of list_kernels that are not template arguments.
NO_ARGUMENTS = ("kernel", "threads", "shared_bytes")


@dataclass(frozen=True)
class Kernel:
    """A kernel compiled for one architecture, or a function of a kernel that was not inlined."""

    source: str
    architecture: str  # "90" for sm_90
    name: str
    variant: str  # template or constexpr arguments
    registers: int | None  # per thread; None for a function
    shared_bytes: int  # static, plus dynamic if a GPU launches this variant by default
    spill_bytes: int  # stored and loaded
    stack_bytes: int = 0
    by_default: bool = True  # a GPU launches this variant by default
    complaints: tuple[str, ...] = ()  # about the machine code

    @property
    def label(self) -> str:
        return f"{self.name} {self.variant}".rstrip()


def main(
    which: Literal["all", "cuda", "triton"] = "all",
    sources: Path = CUDA_SOURCES,
    jobs: int = 2,
    nvcc_flags: tuple[str, ...] = (),
    out: Path | None = None,
) -> bool:
    """Compile the GPU kernels, print registers, shared memory and spills, and return whether all kernels pass.

    Args:
        which: CUDA C++ alone, Triton alone, or both.
        sources: Folder of the CUDA files, architectures.json and list_kernels.cpp.
        jobs: Number of compilers that run at the same time.
        nvcc_flags: Additional flags, such as -maxrregcount=128.
        out: JSON file to write the record to.
    """
    here = machine()
    kernels: list[Kernel] = []
    faults: list[str] = []
    limits = {a: kib << 10 for a, kib in _architectures(sources)["shared_kib"].items()}
    if which != "triton":
        compiled = compile_cuda(sources, jobs, nvcc_flags)
        kernels, faults = with_dynamic_memory(compiled, sources, limits)
    if which != "cuda":
        kernels += compile_triton(jobs)
    faults += [fault for kernel in kernels for fault in faults_of(kernel, limits)]
    print(table(kernels))
    counts = Counter("Triton" if kernel.source == "triton" else "CUDA" for kernel in kernels)
    print("\n" + ", ".join(f"{count} {kind} kernels" for kind, count in counts.items()), end=": ")
    print("no spills, shared memory within the limits" if not faults else f"{len(faults)} faults")
    print("\n".join(faults))
    if out is not None:
        write_record(out, {"machine": here, "kernels": [asdict(kernel) for kernel in kernels], "faults": faults})
    return not faults


def compile_cuda(sources: Path, jobs: int, flags: tuple[str, ...]) -> list[Kernel]:
    """Compile every .cu file for its architectures in architectures.json; shared memory is the static part only."""
    files = sorted(sources.glob("*.cu"))
    if not files:
        raise ValueError(f"{sources} contains no .cu file, expected the folder csrc/cuda")
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc was found neither in CUDA_HOME nor on the PATH; install the CUDA toolkit")
    wanted = _architectures(sources)

    def compile_one(file: Path, architecture: str) -> list[Kernel]:
        with tempfile.TemporaryDirectory() as folder:
            codes = [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xptxas=-v"]
            cubin = f"{folder}/kernel.cubin"
            report = _output([nvcc, "-std=c++20", "-O3", "-cubin", *codes, *flags, str(file), "-o", cubin])
            kernels = list(parse(report, file.name, architecture))
            if architecture not in INSTRUCTIONS:
                return kernels
            found, lost = complaints(_output([find_cuobjdump(), "-sass", cubin]), architecture), lost_speed(report)
            return [replace(kernel, complaints=found.get(kernel.label, ()) + lost) for kernel in kernels]

    of_some = wanted.get("machine_code_of", {})
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(compile_one, f, a) for f in files for a in of_some.get(f.name, wanted["machine_code"])]
        return [kernel for task in tasks for kernel in task.result()]


def find_cuobjdump() -> str:
    """Return the disassembler of the CUDA toolkit, or the one in Triton's wheel."""
    triton = importlib.util.find_spec("triton")
    places = [] if triton is None or triton.origin is None else [Path(triton.origin).parent / "backends/nvidia/bin"]
    found = find_tool("cuobjdump") or next((shutil.which("cuobjdump", path=str(p)) for p in places), None)
    if found is None:
        raise RuntimeError("cuobjdump was found neither on the PATH nor in Triton; install the CUDA toolkit or triton")
    return found


def complaints(sass: str, architecture: str) -> dict[str, tuple[str, ...]]:
    """Return label of a kernel → what is wrong with its machine code."""
    result = {}
    for text in sass.split("Function : ")[1:]:
        name, variant = _split(_demangled(text.split()[0]))
        result[f"{name} {variant}".rstrip()] = faults_of_code(name, variant, text, architecture)
    return result


def parse(report: str, source: str, architecture: str) -> Iterator[Kernel]:
    """Yield the kernels, and the functions that were not inlined, from a report of ptxas -v."""
    entry = function = ""
    for line in report.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            entry = match[1]
        elif match := re.search(r"Function properties for (\S+)", line):
            function = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
            if function != entry:
                yield Kernel(source, architecture, *_split(_demangled(function)), None, 0, spills, stack)
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            shared_bytes = int(shared[1]) if shared else 0
            name, variant = _split(_demangled(entry))
            yield Kernel(source, architecture, name, variant, int(match[1]), shared_bytes, spills, stack)


def with_dynamic_memory(kernels: list[Kernel], sources: Path, limits: dict[str, int]) -> tuple[list[Kernel], list[str]]:
    """Return the kernels with the dynamic shared memory of their launches added, and the faults of list_kernels.

    list_kernels.cpp lists the kernels that a GPU launches by default. Each listed kernel must be compiled for that GPU
    and fit its shared memory, and each compiled kernel must be listed for some GPU.
    """
    faults, dynamic, listed = [], dict[Kernel, int](), _listed(sources, limits)
    compiled_for = {k.architecture for k in kernels if k.architecture not in INSTRUCTIONS}
    for gpu, lines in listed.items():
        code = _code_for(gpu, compiled_for)
        if code is None:
            faults.append(f"sm_{gpu}: runs no machine code of sm_{', sm_'.join(sorted(compiled_for, key=int))}")
            continue
        for line in lines:
            served = [k for k in kernels if k.architecture in (code, f"{gpu}a") and _is_listed_as(k, line)]
            if not served:
                faults.append(f"sm_{gpu}: list_kernels names {json.dumps(line)}, which was not compiled for sm_{code}")
            for kernel in served:
                dynamic[kernel] = max(dynamic.get(kernel, 0), line["shared_bytes"])
                if (total := kernel.shared_bytes + line["shared_bytes"]) > limits[gpu]:
                    faults.append(_too_much(f"sm_{gpu} {kernel.label}", total, limits[gpu]))
    names = {line["kernel"] for lines in listed.values() for line in lines}
    faults += [
        f"sm_{kernel.architecture} {kernel.name}: list_kernels does not state its dynamic shared memory"
        for kernel in kernels
        if kernel.registers is not None and kernel.name not in names
    ]
    complete = [
        replace(k, shared_bytes=k.shared_bytes + dynamic.get(k, 0), by_default=k in dynamic or k.registers is None)
        for k in kernels
    ]
    return complete, faults


def compile_triton(jobs: int) -> Iterator[Kernel]:
    """Compile the Triton kernels for the architectures of compile_offline.py."""
    try:
        import triton  # noqa: F401  (for a clear error message)
    except ImportError:
        raise RuntimeError("triton is not installed; pip install triton") from None
    from sce_fast.kernels import compile_offline

    for kernel in compile_offline.compile_all(jobs=jobs):
        yield Kernel("triton", str(kernel.architecture), *kernel[1:])


def faults_of(kernel: Kernel, limits: dict[str, int]) -> list[str]:
    """Return why a kernel does not pass on its architecture, an empty list if it passes."""
    label = f"sm_{kernel.architecture} {kernel.label}"
    faults = [f"{label}: spills {kernel.spill_bytes} bytes"] if kernel.spill_bytes else []
    faults += [f"{label}: {complaint}" for complaint in kernel.complaints]
    wanted = REGISTERS.get(kernel.name)
    if wanted is not None and kernel.registers not in (None, wanted):
        faults.append(
            f"{label}: has {kernel.registers} registers a thread at launch, and setmaxnreg counts on {wanted}"
        )
    may_be_empty = kernel.source == "triton" or "forward_pass" in kernel.name
    if may_be_empty and kernel.registers is not None and kernel.registers < FEWEST_REGISTERS:
        faults.append(f"{label}: has {kernel.registers} registers a thread: it was compiled to nothing")
    limit = limits[kernel.architecture.removesuffix("a")]
    if kernel.shared_bytes > limit:
        faults.append(_too_much(label, kernel.shared_bytes, limit))
    return faults


def table(kernels: list[Kernel]) -> str:
    """Return a line of text for each kernel, with a header."""
    lines = [f"{'':<8}{'registers':>10}{'shared':>9}{'spilled':>9}{'stack':>7}  kernel"]
    for k in kernels:
        note = "" if k.by_default else ", no GPU's default: dynamic memory not counted"
        registers = "function" if k.registers is None else k.registers
        numbers = f"{registers:>10}{k.shared_bytes:>9}{k.spill_bytes:>9}{k.stack_bytes:>7}"
        lines.append(f"{'sm_' + k.architecture:<8}{numbers}  {k.label}  ({k.source}{note})")
    return "\n".join(lines)


def _too_much(label: str, taken: int, limit: int) -> str:
    return f"{label}: takes {taken} bytes of shared memory, a block may have {limit}"


def _architectures(sources: Path) -> dict[str, Any]:
    return json.loads((sources / "architectures.json").read_text())


def _listed(sources: Path, limits: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Return GPU → the lines of list_kernels for its shared memory."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/list_kernels"
        compiler = os.environ.get("CXX", "c++").split()
        _output([*compiler, "-std=c++20", str(sources / "list_kernels.cpp"), "-o", program])
        texts = {gpu: _output([program, gpu, str(limit >> 10)]) for gpu, limit in limits.items()}
    return {gpu: [json.loads(line) for line in text.splitlines()] for gpu, text in texts.items()}


def _code_for(gpu: str, compiled: set[str]) -> str | None:
    """Return the architecture whose machine code a GPU runs: the same major version, at most the same minor version."""
    same = [a for a in compiled if a[:-1] == gpu[:-1] and a[-1] <= gpu[-1]]
    return max(same, default=None)


def _is_listed_as(kernel: Kernel, line: dict[str, Any]) -> bool:
    """Return whether a line of list_kernels means this kernel, by its name and its last template arguments."""
    numbers = [int(number) for number in re.findall(r"(?<![\w])\d+", kernel.variant)]
    wanted = [value for name, value in line.items() if name not in NO_ARGUMENTS]
    return kernel.name == line["kernel"] and (not numbers or numbers[-len(wanted) :] == wanted)


def _split(demangled: str) -> tuple[str, str]:
    """Return (kernel, <Type, true, 4>) for void space::(anonymous namespace)::kernel<space::Type, true, 4>(…)."""
    match = re.search(r"(\w+)(<.*>)?\((?!anonymous)", demangled)
    if match is None:
        return demangled, ""
    return match[1], re.sub(r"\((int|bool)\)|(\w+|\(anonymous namespace\))::", "", match[2] or "")


def _demangled(name: str) -> str:
    filters = [tool for tool in ("cu++filt", "c++filt") if shutil.which(tool)]
    return _output([filters[0], name]).strip() if filters else name


def _output(command: list[str]) -> str:
    """Return the output of a program; if the program fails, raise RuntimeError with the output."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout.strip()}")
    return result.stdout


if __name__ == "__main__":
    import tyro

    try:
        passed = tyro.cli(main)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"benchmarks.compile_gate: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if passed else 1)
