"""Builds of the native extensions, and their messages when a build is not possible."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import torch

import sce_fast

ROOT = Path(__file__).parent.parent
PACKAGES = str(Path(torch.__file__).parents[1])  # the folder with torch and the others


def ask_setup(build, hidden="", **environment):
    """Run setup.py, which prints what it would build; the module `hidden` is as if it were not installed."""
    code = f"import runpy, sys; sys.modules[{hidden!r}] = None; runpy.run_path('setup.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, "--quiet", "--name"],
        cwd=ROOT,
        env={**os.environ, "SCE_FAST_BUILD": build, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_pure_python_on_request():
    result = ask_setup("none")
    assert result.returncode == 0
    assert "installing without native kernels: SCE_FAST_BUILD=none" in result.stderr


def test_without_a_compiler_auto_goes_on_and_cpu_does_not():
    missing = {"CXX": "no-such-compiler"}
    result = ask_setup("auto", **missing)
    assert result.returncode == 0
    assert "no C++ compiler ('no-such-compiler' is not on the PATH" in result.stderr
    result = ask_setup("cpu", **missing)
    assert result.returncode != 0
    assert "SCE_FAST_BUILD='cpu' cannot be met: no C++ compiler" in result.stderr


def test_without_pybind11_auto_goes_on_and_cpu_does_not():
    told = "no pybind11 (pip install pybind11, or leave out pip's --no-build-isolation)"
    result = ask_setup("auto", hidden="pybind11")
    assert result.returncode == 0
    assert f"installing without native kernels: {told}" in result.stderr
    result = ask_setup("cpu", hidden="pybind11")
    assert result.returncode != 0
    assert result.stderr == f"SCE_FAST_BUILD='cpu' cannot be met: {told}\n"


@pytest.mark.parametrize(
    ("build", "message"),
    [("gpu", "expected one of auto, cpu, cuda, none"), ("cuda", "'cuda' cannot be met: no nvcc (neither in CUDA_HOME")],
)
def test_builds_that_cannot_be_are_refused(build, message, tmp_path):
    (tmp_path / "c++").symlink_to(shutil.which("c++"))  # a PATH without nvcc
    result = ask_setup(build, PATH=str(tmp_path), CUDA_HOME="", CUDA_PATH="")
    assert result.returncode != 0
    assert message in result.stderr


def test_one_architecture_on_request(monkeypatch, tmp_path):
    """The ninja file names the chosen architecture only; an unknown name is refused."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SCE_FAST_BUILD", "none")
    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    setup = runpy.run_path("setup.py")
    known = json.loads((ROOT / "csrc/cuda/architectures.json").read_text())["machine_code"]
    assert all(f"sm_{name}" in setup["ninja_file"]("nvcc", str(tmp_path), "out.so") for name in known)
    monkeypatch.setenv("SCE_FAST_CUDA_ARCHITECTURES", known[0])
    text = setup["ninja_file"]("nvcc", str(tmp_path), "out.so")
    codes = set(re.findall(r",code=(\w+)", text))
    assert f"sm_{known[0]}" in codes
    assert not codes & {f"sm_{name}" for name in known[1:]}
    assert not any(code.startswith("compute_") for code in codes)
    monkeypatch.setenv("SCE_FAST_CUDA_ARCHITECTURES", f"{known[0]},75")
    with pytest.raises(SystemExit, match="SCE_FAST_CUDA_ARCHITECTURES='80,75': '75' is not one of 80"):
        setup["ninja_file"]("nvcc", str(tmp_path), "out.so")


IMPORTED = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("_cuda", sys.argv[1])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("_cuda", loader))
loader.exec_module(module)
problem = module.Problem(
    query=(0, 1, 70), key=(0, 1, 70), queue=(0, 1, 1100), batch_keys=(0, 0, 0), query_views=1, key_views=1,
    batch_key_views=0, batch=70, dim=256, row_offset=0, same_views=False, zero_logit=False, needs_gradient=True,
    needs_target=True, temperature=0.1, target_temperature=0.05, coefficient=0.5, scalars=0,
)
plan = module.plan(problem, (132, 227 << 10, 90), 0)
print(module.architectures, plan.kernel, plan.shared["tile"], plan.shared["stages"], plan.fixed_shift, sep=";")
try:
    print(module.limits(0))
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")
def test_the_cuda_extension_compiles_links_and_loads_without_a_gpu(monkeypatch, tmp_path):
    """For Hopper, with CUDA's own headers and runtime: tensor maps, launches and binding are the same as on a GPU."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SCE_FAST_BUILD", "none")
    monkeypatch.setenv("SCE_FAST_CUDA_ARCHITECTURES", "90")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # for ninja
    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    setup, target = runpy.run_path("setup.py"), tmp_path / "lib" / "_cuda.so"
    setup["build_cuda"](setup["find_nvcc"](), str(tmp_path / "objects"), str(target))
    # Resolve every symbol at once, so that a missing one is an error.
    environment = {**os.environ, "LD_BIND_NOW": "1"}
    command = [sys.executable, "-c", IMPORTED, target]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    planned, limits = done.stdout.splitlines()
    assert planned == "sm_90 sm_90a;sm90;80;4;True"
    assert re.fullmatch(r"cudaDeviceGetAttribute: cudaError\w+, .+|\(\d+, \d+, \d+\)", limits)


def copy_of_sources(folder):
    """Return a copy of what an installation needs: a build leaves files among the sources."""
    for part in ("sce_fast", "kernels", "benchmarks", "csrc"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def sdist_of(source):
    """Return an sdist, made where nothing is compiled: the sources are in it all the same."""
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, env={**os.environ, "SCE_FAST_BUILD": "none"}, check=True)
    (sdist,) = (source / "dist").iterdir()
    return sdist


INSTALLED = """
import sys
sys.modules |= dict.fromkeys(["numpy", "tyro", "tqdm", "safetensors", "nvidia", "triton"])  # as without extras
import torch, sce_fast
from sce_fast.native import CPU
print(sce_fast.__file__)
assert CPU.missing == "", CPU.missing
query, key, queue = (torch.nn.functional.normalize(torch.randn(n, 32), dim=-1) for n in (6, 6, 300))
loss, statistics = sce_fast.sce_loss(query, key, queue, return_statistics=True)
assert statistics.backend == "cpu"
assert (loss - sce_fast.sce_loss(query, key, queue, backend="reference")).abs() < 1e-5
from sce_fast.cli import main
main(["doctor"])
"""

ADVICE = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "sce_fast").rglob("*.py")]


def test_the_extras_in_advice_exist():
    """The package is on no registry, so pip finds it in a clone or by git."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    advice = [line for file in ADVICE for line in file.read_text().splitlines() if "pip install" in line]
    assert len(advice) > 5
    for line in advice:
        for named in re.findall(r"(?:\.|sce_fast)\[([\w,]+)\]", line):
            assert set(named.split(",")) <= extras.keys(), line
        assert "git+" in line or not re.search(r"pip install '?sce_fast", line), line


@pytest.mark.slow
@pytest.mark.parametrize("pack", [lambda source: source, sdist_of], ids=["clone", "sdist"])
def test_pip_builds_the_kernels_in_isolation(tmp_path, pack):
    """pip builds in an environment of its own, without torch; the wheel runs the loss in a fresh environment."""
    environment = {name: value for name, value in os.environ.items() if name not in ("SCE_FAST_BUILD", "PYTHONPATH")}
    venv.create(tmp_path / "venv", symlinks=True)
    python, (site,) = tmp_path / "venv/bin/python", (tmp_path / "venv/lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run([*install, pack(copy_of_sources(tmp_path / "source"))], env=environment, check=True)
    # torch is not installed again; the .pth files beside it are not read
    (site / "packages.pth").write_text(PACKAGES)
    run = dict(cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    told = subprocess.run([python, "-c", INSTALLED], **run).stdout
    assert told.startswith(str(site))
    assert "  cpu         float32, bfloat16, float16\n" in told
    (metadata,) = site.glob("sce_fast-*.dist-info")
    assert re.search(r"^Tag: cp\d+-cp\d+-linux", (metadata / "WHEEL").read_text(), re.MULTILINE)
    version = subprocess.run([tmp_path / "venv/bin/sce-fast", "--version"], **run).stdout
    assert version == f"sce-fast {sce_fast.__version__}\n"
    assert metadata.name == f"sce_fast-{sce_fast.__version__}.dist-info"


@pytest.mark.slow
@pytest.mark.parametrize("broken", [{"SCE_FAST_BUILD": "none"}, {"CXX": "false"}], ids=["asked for", "compiler fails"])
def test_the_package_works_in_pure_python_and_says_what_it_lacks(tmp_path, photo_folder, broken):
    """Without its extension the package loads data with the same values and warns."""
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    source = copy_of_sources(tmp_path / "source")
    subprocess.run([*install, "--target", site, source], env={**os.environ, **broken}, check=True)
    code = f"""
import sys, sce_fast
from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader
assert sce_fast.__file__.startswith({str(site)!r}), sce_fast.__file__
view = Augmentation(size=32, **AUGMENTATIONS["strong"])
index = index_images({str(photo_folder)!r})
batch = next(TrainingLoader(index, RandomViews(index, (view, view), seed=5), batch_size=8))
print(f"{{batch.views[0].double().mean():.3f}}")
"""
    run = [sys.executable, "-W", "always", "-c", code]
    # -S skips the environment's .pth files: the editable installation would supply its extension.
    path = os.pathsep.join([str(site), PACKAGES])
    pure = subprocess.run(
        [run[0], "-S", *run[1:]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the CPU kernels are not built" in pure.stderr
    native = subprocess.run(
        [*run[:-1], code.replace(str(site), str(ROOT))], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "not built" not in native.stderr
    assert float(pure.stdout) == pytest.approx(float(native.stdout), abs=0.002)
