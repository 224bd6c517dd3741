"""Build the native extensions; pyproject.toml holds everything else about the package. Neither needs torch.

SCE_FAST_BUILD chooses what is compiled:
  auto  (default) the CPU kernels if there is a C++ compiler, and the CUDA kernels if there are also nvcc and a GPU;
        what does not build is left out, with a message
  cpu   the CPU kernels, or an error
  none  nothing: the package then runs in pure Python
  cuda  the CPU and the CUDA kernels, or an error; needs nvcc (CUDA_HOME/bin or PATH) but no GPU

SCE_FAST_CUDA_ARCHITECTURES=80,90 compiles machine code for these architectures only, without the others in
csrc/cuda/architectures.json and without PTX for later GPUs. For a single GPU this takes a fraction of the time.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

CHOICES = ("auto", "cpu", "cuda", "none")
CPU_SOURCES = [
    "csrc/cpu/bindings.cpp",
    "csrc/cpu/brgemm.cpp",
    "csrc/cpu/color_jitter.cpp",
    "csrc/cpu/decoder_messages.cpp",
    "csrc/cpu/exponentials.cpp",
    "csrc/cpu/file_stamps.cpp",
    "csrc/cpu/gaussian_blur.cpp",
    "csrc/cpu/solve.cpp",
    "csrc/cpu/forward_pass.cpp",
    "csrc/cpu/philox.cpp",
    "csrc/cpu/temporal_difference.cpp",
    "csrc/cpu/tile.cpp",
    "csrc/cpu/transpose.cpp",
    "csrc/cpu/yuv.cpp",
]
# No -ffast-math: NaN stays NaN. No contraction to fused multiply-adds: pixels are the same on every instruction set.
CPU_FLAGS = ["-O3", "-fopenmp", "-ffp-contract=off", "-Wall", "-Wextra"]
CUDA_FOLDER = Path("csrc/cuda")
CUDA_SOURCES = (
    "bindings.cpp",
    "enqueue.cu",
    "combine.cu",
    "solve.cu",
    "sm80_forward_pass.cu",
    "sm90_products.cu",
    "sm90_variants.cu",
    "sm90_forward_pass.cu",
)


def find_nvcc() -> str | None:
    """Return the path of nvcc in CUDA_HOME, CUDA_PATH or PATH, or None."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    return next(filter(None, (shutil.which("nvcc", path=f"{home}/bin") for home in homes)), shutil.which("nvcc"))


def ninja_file(nvcc: str, folder: str, target: str) -> str:
    """Return the ninja file that compiles csrc/cuda into `target` for the chosen architectures, without torch."""
    import pybind11

    wanted = chosen_architectures()
    of_all = [("sm", a) for a in wanted["machine_code"]] + [("compute", a) for a in wanted["ptx"]]
    of_some = {source: [("sm", a) for a in codes] for source, codes in wanted["machine_code_of"].items()}
    every = [*of_all, *(code for codes in of_some.values() for code in codes)]
    names = " ".join(f"{kind}_{a}" for kind, a in dict.fromkeys(every))
    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = ["-std=c++20", "-O3", "--threads=2", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"]
    flags += [f'-isystem="{path}"' for path in includes] + [f"-DSCE_FAST_ARCHITECTURES='\"{names}\"'"]

    def path(name: object) -> str:
        return str(name).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def compile_one(name: str) -> str:
        codes = [f"-gencode=arch=compute_{a},code={kind}_{a}" for kind, a in of_some.get(name, of_all)]
        step = f"build {path(f'{folder}/{name}.o')}: compile {path((CUDA_FOLDER / name).resolve())}"
        return f"{step}\n  codes = {' '.join(codes)}"

    objects = [path(f"{folder}/{name}.o") for name in CUDA_SOURCES]
    lines = [
        f"builddir = {path(folder)}",
        "rule compile",
        f'  command = "{nvcc}" {" ".join(flags)} $codes -MD -MF $out.d -c $in -o $out',
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f'  command = "{nvcc}" -shared -cudart=static $in -o $out',
        *map(compile_one, CUDA_SOURCES),
        f"build {path(target)}: link {' '.join(objects)}",
    ]
    return "\n".join([*lines, ""])


def chosen_architectures() -> dict:
    """Return the content of architectures.json, reduced to SCE_FAST_CUDA_ARCHITECTURES if that is set."""
    wanted = json.loads((CUDA_FOLDER / "architectures.json").read_text())
    asked = os.environ.get("SCE_FAST_CUDA_ARCHITECTURES", "")
    if not asked:
        return wanted
    names = asked.split(",")
    for name in names:
        if name not in wanted["machine_code"]:
            known = ", ".join(wanted["machine_code"])
            sys.exit(f"SCE_FAST_CUDA_ARCHITECTURES={asked!r}: {name!r} is not one of {known}")
    return {**wanted, "machine_code": names, "ptx": []}


def build_cuda(nvcc: str, folder: str, target: str) -> None:
    """Compile csrc/cuda with ninja into the extension module `target`."""
    os.makedirs(folder, exist_ok=True)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    (Path(folder) / "build.ninja").write_text(ninja_file(nvcc, folder, target))
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    subprocess.run([shutil.which("ninja") or "ninja", "-f", f"{folder}/build.ninja", *jobs], check=True)


def what_is_missing(cuda: bool) -> str | None:
    """Return why the CPU kernels, or with `cuda` the CUDA kernels too, cannot be built here; or None."""
    compiler = os.environ["CXX"].split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler ('{compiler}' is not on the PATH; set CXX to name another)"
    if importlib.util.find_spec("pybind11") is None:
        return "no pybind11 (pip install pybind11, or leave out pip's --no-build-isolation)"
    if cuda and find_nvcc() is None:
        return "no nvcc (neither in CUDA_HOME/bin nor on the PATH; install the CUDA toolkit)"
    if cuda and shutil.which("ninja") is None:
        return "no ninja (pip install ninja, or leave out pip's --no-build-isolation)"
    return None


def extensions(choice: str) -> dict:
    """Return the arguments of setup() that build the chosen extensions."""
    if choice not in CHOICES:
        sys.exit(f"SCE_FAST_BUILD={choice!r}: expected one of {', '.join(CHOICES)}")
    os.environ.setdefault("CXX", "c++")  # instead of the compiler that Python was built with
    missing = "SCE_FAST_BUILD=none" if choice == "none" else what_is_missing(cuda=choice == "cuda")
    if missing is not None and choice in ("cpu", "cuda"):
        sys.exit(f"SCE_FAST_BUILD={choice!r} cannot be met: {missing}")
    if missing is not None:
        print(f"sce_fast: installing without native kernels: {missing}", file=sys.stderr)
        return {}

    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
    from setuptools import Extension
    from setuptools.command.build_ext import build_ext
    from setuptools.errors import CompileError

    class OptionalInAuto(build_ext):
        """Install a pure Python package, with a warning, if a compilation fails and SCE_FAST_BUILD is auto."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # compilers fail in many ways, and the advice is the same for each
                if choice != "auto":
                    raise
                print(f"sce_fast: the CPU kernels did not build, installing without them: {error}", file=sys.stderr)
                self.extensions = []

        def build_extension(self, ext: Extension) -> None:
            if ext.name != "sce_fast._cuda":
                return super().build_extension(ext)
            try:
                folder, target = (os.path.abspath(p) for p in (self.build_temp, self.get_ext_fullpath(ext.name)))
                build_cuda(find_nvcc() or "nvcc", f"{folder}/cuda", target)
            except (OSError, subprocess.CalledProcessError) as error:
                raise CompileError(f"the CUDA kernels did not build: {error}") from error

    ParallelCompile("MAX_JOBS").install()  # otherwise setuptools compiles one source after another
    modules = [
        Pybind11Extension(
            "sce_fast._cpu", CPU_SOURCES, cxx_std=20, extra_compile_args=CPU_FLAGS, extra_link_args=["-fopenmp"]
        )
    ]
    gpus = any(Path("/dev").glob("nvidia[0-9]*"))
    if choice == "cuda" or (gpus and what_is_missing(cuda=True) is None):
        modules.append(Extension("sce_fast._cuda", [str(CUDA_FOLDER / "bindings.cpp")], optional=choice == "auto"))
    return {"ext_modules": modules, "cmdclass": {"build_ext": OptionalInAuto}}


setup(**extensions(os.environ.get("SCE_FAST_BUILD", "auto")))
