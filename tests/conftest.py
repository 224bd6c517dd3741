"""Fixtures of many tests: photographs that scikit-learn ships, seeds, caches, and the GPU.

Heavy packages are imported where they are used: pytest-xdist reads this file before it starts its workers.
"""

import functools
import inspect
import itertools
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline, since times vary on a busy machine; the same examples every time.
settings.register_profile("tests", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seeded():
    import torch

    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cache_folders(tmp_path_factory):
    """Yield folders that do not exist yet. (tmp_path_factory lists all earlier folders before it makes one.)"""
    root = tmp_path_factory.mktemp("caches")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(cache_folders, monkeypatch):
    """Keep tests away from the user's cache."""
    monkeypatch.setenv("SCE_FAST_CACHE", str(next(cache_folders)))


@pytest.fixture(scope="session")
def photographs():
    """Return a list of two natural images, (427, 640, 3) uint8."""
    import numpy as np
    from sklearn.datasets import load_sample_images

    return [np.array(image) for image in load_sample_images().images]


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory, photographs) -> Path:
    """Write 24 JPEG crops of different sizes in two class folders; one is stored sideways with an EXIF rotation."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(24):
        photograph = photographs[i % 2]
        height, width = random.integers(120, 260, 2)
        top, left = random.integers(0, 427 - height), random.integers(0, 640 - width)
        image = Image.fromarray(photograph[top : top + height, left : left + width])
        path = root / ("temple" if i % 2 == 0 else "flower") / f"{i:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        if i == 5:
            exif[0x0112] = 6
        image.save(path, quality=92, exif=exif)
    return root


def pytest_generate_tests(metafunc):
    """Run tests that take gpu_backend with each kernel."""
    if "gpu_backend" in metafunc.fixturenames:
        from sce_fast.benchmarks.acceptance.gpu_kernels import KERNELS

        metafunc.parametrize("gpu_backend", list(KERNELS), indirect=True)


@pytest.fixture
def gpu_backend(request) -> str:
    """Return the backend name of a kernel that is meant for this GPU."""
    from sce_fast.benchmarks.acceptance.gpu_kernels import KERNELS

    kernel = KERNELS[request.param]
    reason = kernel.missing()
    if reason is not None:
        pytest.skip(reason)
    return kernel.backend


@pytest.fixture
def cuda():
    """Return the GPU as a torch.device; skip if there is no nvcc to build the CUDA kernels with."""
    import torch

    from sce_fast.benchmarks import machine
    from sce_fast.native import CUDA

    if CUDA.missing and machine.find_tool("nvcc") is None:
        pytest.skip("there is no nvcc, so the CUDA kernels are not built")
    assert CUDA.missing == "", "the extension is not built: SCE_FAST_BUILD=cuda"
    return torch.device("cuda", torch.cuda.current_device())


def pytest_collection_modifyitems(items):
    """Mark the tests that start processes with helpers.ranks, in their own code or in that of their fixtures.

    They come first, so that a worker of pytest-xdist runs all of them, one after another: it begins with the first
    tests, and others steal its last.
    """
    for item in items:
        fixtures = [found[-1].func for found in item._fixtureinfo.name2fixturedefs.values()]
        if any({"ranks", "Broken"} & _names(function) for function in (item.function, *fixtures)):
            item.add_marker("processes")
    items.sort(key=lambda item: "processes" not in item.keywords)


@functools.cache
def _names(function) -> set[str]:
    """Return the names that a function uses, and those that functions of its module use which it calls."""
    found, todo = set(), [inspect.unwrap(function)]
    while todo:
        code = todo.pop().__code__
        names = {name for part in (code, *filter(inspect.iscode, code.co_consts)) for name in part.co_names} - found
        found |= names
        called = (function.__globals__.get(name) for name in names)
        todo += [f for f in called if inspect.isfunction(f) and f.__module__ == function.__module__]
    return found
