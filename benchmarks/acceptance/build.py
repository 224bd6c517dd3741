"""Build the package in place for the GPU of this machine.

    python -m benchmarks.acceptance.build --events FILE --capability 9.0

The build uses no package registry: pybind11, ninja and setuptools must be installed, and nvcc for the CUDA kernels. The
environment's own packages are not touched; build/site, a folder for PYTHONPATH, leads to the checkout.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from ..machine import find_tool
from .supervise import Events, NotRun, tail_of

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
INSTALL = ["-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--verbose", "--upgrade"]
INSTALL += ["--target", str(SITE), "--editable", "."]
CHECK = """
import sys
import sce_fast.benchmarks, sce_fast.kernels
from sce_fast.loss import cuda
from sce_fast.native import CPU, CUDA
assert not CPU.missing, CPU.missing
if CUDA.missing and sys.argv[1] == "without nvcc":
    print("without the CUDA kernels:", CUDA.missing)
else:
    assert not CUDA.missing, CUDA.missing
    print("built for", cuda.architectures())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--capability", required=True, help="compute capability of the GPU, such as 9.0")
    options = parser.parse_args()
    major, minor = map(int, options.capability.split("."))
    Events(options.events).run({"extension": lambda: build(major, minor), "import": check_import})


def build(major: int, minor: int) -> dict[str, object]:
    """Install the checkout in editable mode, compiled for one architecture with one compiler per processor."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        install({"SCE_FAST_BUILD": "auto"})
        raise NotRun("no CUDA kernels: there is no nvcc in CUDA_HOME/bin, on PATH or in /usr/local/cuda/bin")
    wanted = json.loads((ROOT / "csrc" / "cuda" / "architectures.json").read_text())["machine_code"]
    chosen = architectures(wanted, major, minor)
    environment = {"SCE_FAST_BUILD": "cuda", "MAX_JOBS": str(len(os.sched_getaffinity(0)))}
    environment["CUDA_HOME"] = str(Path(nvcc).resolve().parents[1])
    if chosen:
        environment["SCE_FAST_CUDA_ARCHITECTURES"] = ",".join(chosen)
    failed, output = install(environment)
    if failed:
        install({"SCE_FAST_BUILD": "none"})  # the parts that do not need CUDA kernels can still run
        raise RuntimeError(tail_of(output))
    return {"architectures": chosen or wanted}


def install(environment: dict[str, str]) -> tuple[bool, str]:
    """Install the checkout into build/site; return (whether it failed, the output)."""
    command, environment = [sys.executable, *INSTALL], {**os.environ, **environment}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"  # for ninja
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout, flush=True)
    SITE.mkdir(parents=True, exist_ok=True)
    # Python reads .pth files only in its own folders, but it imports sitecustomize from any folder of PYTHONPATH.
    (SITE / "sitecustomize.py").write_text("import os, site\n\nsite.addsitedir(os.path.dirname(__file__))\n")
    return done.returncode != 0, done.stdout


def site_environment() -> dict[str, str]:
    """Return the environment variables with which the package in build/site is found."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(SITE), os.environ.get("PYTHONPATH"))))}


def architectures(wanted: list[str], major: int, minor: int) -> list[str]:
    """Return the architectures that suit a GPU best: its major version and the nearest minor version."""
    number = {name: int(name.rstrip("af")) for name in wanted}
    supported = [n for n in number.values() if n // 10 == major and n % 10 <= minor]
    return [name for name in wanted if supported and number[name] == max(supported)]


def check_import() -> dict[str, str]:
    """Import the package, the kernels and both extensions in a new process; without nvcc, `_cuda` may be missing."""
    environment = {**os.environ, **site_environment()}
    command = [sys.executable, "-c", CHECK, "without nvcc" if find_tool("nvcc") is None else "with nvcc"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(tail_of(done.stderr))
    return {"output": done.stdout.strip()}


if __name__ == "__main__":
    main()
