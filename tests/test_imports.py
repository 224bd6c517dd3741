"""A room is a package or module. Each room imports only from its own line of ROOMS and the lines above."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the foundation to the command line. A module belongs to the longest room name that is a prefix of its own.
ROOMS = """
    sce_fast.native
    sce_fast.util
    sce_fast.distributed sce_fast.train.stop
    sce_fast.loss.names sce_fast.loss.problem
    sce_fast.kernels
    sce_fast.loss
    sce_fast.data.sources sce_fast.data.cache sce_fast.data.faults sce_fast.data.order sce_fast.data.pipeline
    sce_fast.data.stamps
    sce_fast.data.image
    sce_fast.data.video.timeline
    sce_fast.data.index
    sce_fast.data.image.views sce_fast.data.video
    sce_fast.data
    sce_fast.backbones
    sce_fast.config
    sce_fast.recipes
    sce_fast.method
    sce_fast
    sce_fast.evaluate
    sce_fast.train
    sce_fast.evaluate.supervised
    sce_fast.evaluate.linear sce_fast.evaluate.finetune sce_fast.evaluate.semi_supervised
    sce_fast.export
    sce_fast.evaluate.detection
    sce_fast.benchmarks.machine sce_fast.benchmarks.record
    sce_fast.tools
    sce_fast.benchmarks
    sce_fast.cli
    sce_fast.__main__
"""
LEVEL = {room: level for level, line in enumerate(ROOMS.strip().splitlines()) for room in line.split()}


def room_of(module: str) -> str:
    return max((room for room in LEVEL if f"{module}.".startswith(f"{room}.")), key=len)


def modules() -> dict[str, Path]:
    """Return the file of every module in the package."""
    folders = {"sce_fast": "sce_fast", "sce_fast.kernels": "kernels", "sce_fast.benchmarks": "benchmarks"}
    found = {}
    for package, folder in folders.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = file
    return found


def imports_of(module: str, source: str, *, is_package: bool = False) -> set[str]:
    """Return the full names that a module imports from sce_fast, also inside functions."""
    package = module if is_package else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("sce_fast")}


def wrong_imports(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Return a message for each import from a room below the module's own."""
    own = room_of(module)
    rooms = {name: room_of(name) for name in imports_of(module, source, is_package=is_package)}
    return [
        f"{module} imports {name}, but room {room} is below {own}"
        for name, room in sorted(rooms.items())
        if LEVEL[room] > LEVEL[own]
    ]


def test_rooms_import_only_from_rooms_above_them():
    found = []
    for module, file in modules().items():
        found += wrong_imports(module, file.read_text(), is_package=file.name == "__init__.py")
    assert found == []


@pytest.mark.parametrize(
    ("module", "source", "imported"),
    [
        ("sce_fast.util.files", "from sce_fast.cli import main", "sce_fast.cli.main"),
        ("sce_fast.util.files", "def late():\n    import sce_fast.cli", "sce_fast.cli"),
        ("sce_fast.data.image.graph", "from ..loader import Batch", "sce_fast.data.loader.Batch"),
        ("sce_fast.data.image.graph", "from sce_fast.data import loader", "sce_fast.data.loader"),
        ("sce_fast.loss.problem", "from sce_fast.loss.api import sce_loss", "sce_fast.loss.api.sce_loss"),
    ],
)
def test_an_import_from_below_is_found(module, source, imported):
    (message,) = wrong_imports(module, source)
    assert message.startswith(f"{module} imports {imported}, but room ")


def test_every_room_exists():
    assert LEVEL.keys() - modules().keys() == set()


def test_tests_have_the_folders_of_the_code():
    tests = ROOT / "tests"
    folders = {str(file.parent.relative_to(tests)) for file in tests.rglob("test_*.py")} - {".", "cuda_emulator"}
    packages = {module.removeprefix("sce_fast").strip(".").replace(".", "/") for module in modules()}
    assert folders - packages == set()


def test_imports_that_load_neither_dali_nor_triton():
    """Only reading images needs DALI, and only a GPU needs Triton."""
    code = "import sys, sce_fast.evaluate, sce_fast.train, sce_fast.export, sce_fast.data.index; "
    code += "sys.exit('nvidia.dali' in sys.modules or 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
