"""Build the CUDA kernels for the CPU and run them there: the loss as a backend, the enqueue, single tiles."""

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import struct
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pybind11
import torch
from torch import Tensor

from sce_fast.loss import cuda as native_cuda
from sce_fast.loss.pack import TYPES, pack
from sce_fast.loss.problem import Problem, Solution

HERE = Path(__file__).parent
KERNELS = HERE.parent.parent / "csrc" / "cuda"
EMULATOR = tuple(HERE / f"{part}.cpp" for part in ("emulator", "cluster", "shared_memory", "mbarriers", "products"))
HOST_AND_KERNELS = (
    "sm90_forward_pass.cu", "sm90_variants.cu", "sm80_forward_pass.cu", "sm90_products.cu", "combine.cu", "solve.cu",
    "enqueue.cu",
)  # fmt: skip
FLAGS = ["-std=c++20", "-O1", "-fno-inline", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DSCE_FAST_EMULATED"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
# An H100. Its shared memory has room for the larger of two shapes of a kernel.
MULTIPROCESSORS, SHARED_BYTES, CAPABILITY = 132, 227 << 10, 90


class EmulationError(Exception):
    """A mistake that the emulator or a sanitizer has found."""


@functools.cache
def build(program: str, kernels: Path = KERNELS) -> Path:
    """Return the executable of a program in this folder; it is kept between runs until a source changes."""
    sources = [*EMULATOR, HERE / f"{program}.cpp"]
    if program == "emulate":
        sources[:0] = [kernels / name for name in HOST_AND_KERNELS]  # the longest compilation first
    return _built(program, sources, [*FLAGS, *SANITIZERS, f"-I{kernels}", f"-I{HERE}"], kernels)


def load_module() -> Any:
    """Load the extension module _cuda with its kernels emulated, without sanitizers; tensors are on the CPU."""
    sources = [*(KERNELS / name for name in HOST_AND_KERNELS), KERNELS / "bindings.cpp", *EMULATOR]
    includes = [KERNELS, HERE, HERE / "runtime", pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = [*FLAGS, "-fPIC", "-fvisibility=hidden", '-DSCE_FAST_ARCHITECTURES="emulated"', "-shared"]
    path = _built("module", sources, [*flags, *(f"-I{folder}" for folder in includes)], KERNELS)
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(path))
    spec = importlib.util.spec_from_loader("_cuda", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _built(name: str, sources: list[Path], flags: list[str], kernels: Path) -> Path:
    """Return the path of a program; programs and objects are kept in the temporary directory."""
    command = [os.environ.get("CXX", "g++"), *flags]
    common = hashlib.sha256(" ".join(word for word in command if not word.startswith("-I")).encode())
    # By contents, not by folder: a copy of the kernels with one changed file compiles only what includes this file.
    contents = {source: _with_headers(source, [kernels, HERE, HERE / "runtime"]) for source in sources}
    folder = Path(tempfile.gettempdir()) / f"sce_fast_emulator_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)

    def kept(name: str, *parts: bytes) -> Path:
        digest = common.copy()
        for part in parts:
            digest.update(part)
        return folder / f"{name}_{digest.hexdigest()[:16]}"

    def make(target: Path, *arguments: object) -> Path:
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                result = f"{unfinished}/{target.name}"
                subprocess.run([*command, *map(str, arguments), "-o", result], check=True)
                os.replace(result, target)
        return target

    def compile_one(source: Path) -> Path:
        return make(kept(f"{source.name}.o", contents[source]), "-x", "c++", "-c", source)

    target = kept(name, *contents.values())
    if not target.exists():
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            make(target, *pool.map(compile_one, sources))
    return target


def _with_headers(source: Path, folders: list[Path]) -> bytes:
    """Return the contents of a source and of all headers in these folders that it includes, directly or not."""
    files = [source]
    for file in files:  # grows on the way
        for name in re.findall(r'^#include ["<]([^">]+)', file.read_text(), re.MULTILINE):
            found = [path for folder in (file.parent, *folders) if (path := (folder / name).resolve()).is_file()]
            if found and found[0] not in files:
                files.append(found[0])
    return b"".join(file.read_bytes() for file in files)


def run(executable: Path, *arguments: object) -> str:
    """Return the output of a program, or raise EmulationError with its error output."""
    command = [str(executable), *map(str, arguments)]
    # longer traces of every allocation take a tenth of the time
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:malloc_context_size=1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.returncode != 0:
        raise EmulationError(f"{result.stderr.strip()[:4000]} (status {result.returncode})")
    return result.stdout


def _exchange(executable: Path, what: str, content: bytes, *arguments: object) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "input", Path(folder) / "output"
        given.write_bytes(content)
        run(executable, what, given, result, *arguments)
        return result.read_bytes()


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""


def _header(**fields: float) -> bytes:
    """Lines "NAME VALUE" that emulate.cpp reads in this order."""
    return "".join(f"{name} {value}\n" for name, value in fields.items()).encode()


def _rows(tensor: Tensor | None) -> bytes:
    """Type, number of rows, rows."""
    if tensor is None:
        return _header(type=0, rows=0)
    return _header(type=TYPES[tensor.dtype], rows=tensor.numel() // tensor.shape[-1]) + _bytes(tensor)


def _take(content: bytes, dtype: torch.dtype, *shape: int) -> tuple[Tensor, bytes]:
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.frombuffer(bytearray(content[:count]), dtype=dtype).view(shape), content[count:]


def refuses(problem: Problem) -> str | None:
    return native_cuda.refuses_inputs(problem)


def solver(
    seed: int = 0,
    splits: int = 0,
    multiprocessors: int = MULTIPROCESSORS,
    shared_bytes: int = SHARED_BYTES,
    executable: Path | None = None,
    kernel: str = "sm80",
    tuning: native_cuda.Tuning = native_cuda.DEFAULT,
) -> Callable[[Problem], Solution]:
    """Return a backend's `solve` that runs blocks and threads in the order of the seed.

    Candidates are cut into `splits` parts, or with 0 into as many as on a GPU of so many multiprocessors.
    """

    def solve(problem: Problem) -> Solution:
        reason = refuses(problem)
        assert reason is None, reason
        views, batch, dim = problem.query.shape
        key_views = len(problem.key)
        fields, tensors = pack(problem, scalars=problem.scalars)
        numbers = {name: int(value) if isinstance(value, bool) else value for name, value in fields.items()}
        for name in ("query", "key", "queue", "batch_keys", "scalars"):
            del numbers[name]
        content = _header(**numbers, scalars=0 if problem.scalars is None else 3)
        content += b"" if problem.scalars is None else _bytes(problem.scalars)
        content += b"".join(map(_rows, tensors))
        program = executable or build("emulate")
        result = _exchange(
            program, "solve", content, seed, native_cuda.KERNELS[kernel], splits, multiprocessors, shared_bytes,
            CAPABILITY, *native_cuda.codes(tuning),
        )  # fmt: skip
        rows, result = _take(result, torch.float32, batch)
        gradient = None
        if problem.needs_gradient:
            gradient, result = _take(result, problem.query.dtype, views, batch, dim)
        entropy, result = _take(result, torch.float32, key_views, batch)
        probability, result = _take(result, torch.float32, batch)
        assert result == b""
        return Solution(rows, gradient, entropy, probability)

    return solve


def tile_products(rows: Tensor, candidates: Tensor, weights: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return what native_cuda.tile_products returns, computed on the CPU."""
    content = _header(dim=rows.shape[1]) + b"".join(map(_rows, (rows, candidates, weights)))
    result = _exchange(build("emulate"), "products", content, seed)
    products, result = _take(result, torch.float32, *weights.shape)
    outputs, result = _take(result, torch.float32, *rows.shape)
    assert result == b""
    return products, outputs


def enqueue(keys: Tensor, cursor: int, rows: Tensor, normalize: bool = False, seed: int = 0) -> tuple[Tensor, int]:
    """Return the ring `keys` (K, D) and its cursor after `rows` (R, D) have been enqueued."""
    content = _header(dim=keys.shape[1], normalize=int(normalize), cursor=cursor) + _rows(keys) + _rows(rows)
    result = _exchange(build("emulate"), "enqueue", content, seed)
    ring, rest = _take(result, keys.dtype, *keys.shape)
    return ring, struct.unpack("<q", rest)[0]
