"""Builds the package in place for the GPU at hand.

`python -m benchmarks.acceptance.build --events FILE --capability 9.0`.

No registry is reached: torch, pybind11, ninja and setuptools must be there, and so must nvcc for the CUDA kernels. The
environment's own packages stay as they are: what leads to the checkout stands in build/site, a folder for PYTHONPATH.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from ..machine import find_tool
from .supervise import Events, NotRun, last_words

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
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--events", type=Path, required=True)
    options.add_argument("--capability", required=True, help="compute capability of the GPU, as 9.0")
    given = options.parse_args()
    major, minor = map(int, given.capability.split("."))
    Events(given.events).run({"extension": lambda: build(major, minor), "import": imported})


def build(major: int, minor: int) -> dict[str, object]:
    """The editable installation, compiled for one architecture, as many files at a time as there are processors."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        install({"SCE_FAST_BUILD": "auto"})
        raise NotRun("there is no nvcc in CUDA_HOME/bin, on the PATH or in /usr/local/cuda/bin: no CUDA kernels")
    wanted = json.loads((ROOT / "csrc" / "cuda" / "architectures.json").read_text())["machine_code"]
    mine = architectures(wanted, major, minor)
    environment = {"SCE_FAST_BUILD": "cuda", "MAX_JOBS": str(len(os.sched_getaffinity(0)))}
    environment["CUDA_HOME"] = str(Path(nvcc).resolve().parents[1])
    if mine:
        environment["SCE_FAST_CUDA_ARCHITECTURES"] = ",".join(mine)
    failed, output = install(environment)
    if failed:
        install({"SCE_FAST_BUILD": "none"})  # Triton and the other parts can still be looked at
        raise RuntimeError(last_words(output))
    return {"architectures": mine or wanted}


def install(environment: dict[str, str]) -> tuple[bool, str]:
    """(whether it failed, what it said)"""
    command, environment = [sys.executable, *INSTALL], {**os.environ, **environment}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"  # for ninja
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout, flush=True)
    SITE.mkdir(parents=True, exist_ok=True)
    # Python reads .pth files of its own folders alone, but imports this one from any.
    (SITE / "sitecustomize.py").write_text("import os, site\n\nsite.addsitedir(os.path.dirname(__file__))\n")
    return done.returncode != 0, done.stdout


def with_site() -> dict[str, str]:
    """The environment in which the package is found."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(SITE), os.environ.get("PYTHONPATH"))))}


def architectures(wanted: list[str], major: int, minor: int) -> list[str]:
    """Those of the list whose machine code a GPU runs best: of its major version, the nearest minor one."""
    number = {name: int(name.rstrip("af")) for name in wanted}
    runs = [n for n in number.values() if n // 10 == major and n % 10 <= minor]
    return [name for name in wanted if runs and number[name] == max(runs)]


def imported() -> dict[str, str]:
    """A new process finds the package, the kernels and both extensions, that of CUDA where there is nvcc."""
    environment = {**os.environ, **with_site()}
    command = [sys.executable, "-c", CHECK, "without nvcc" if find_tool("nvcc") is None else "with nvcc"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(last_words(done.stderr))
    return {"told": done.stdout.strip()}


if __name__ == "__main__":
    main()
