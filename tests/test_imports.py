"""Each room imports only from the rooms above it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up. A module belongs to the longest of these names that begins its own.
ROOMS = """
    sce_fast.util
    sce_fast.distributed
    sce_fast.native
    sce_fast.loss.names sce_fast.loss.problem
    sce_fast.kernels
    sce_fast.loss
    sce_fast.data.sources sce_fast.data.faults sce_fast.data.order
    sce_fast.data.image
    sce_fast.data
    sce_fast.config
    sce_fast.recipes
    sce_fast.backbones
    sce_fast.method
    sce_fast
    sce_fast.evaluate
    sce_fast.train
    sce_fast.export
    sce_fast.benchmarks.machine sce_fast.benchmarks.record
    sce_fast.tools
    sce_fast.benchmarks
    sce_fast.cli
    sce_fast.__main__
"""
LEVEL = {room: level for level, line in enumerate(ROOMS.strip().splitlines()) for room in line.split()}


def room_of(module: str) -> str:
    return max((room for room in LEVEL if f"{module}.".startswith(f"{room}.")), key=len)


def modules() -> list[tuple[str, Path]]:
    """Every module of the package with its file."""
    folders = {"sce_fast": "sce_fast", "sce_fast.kernels": "kernels", "sce_fast.benchmarks": "benchmarks"}
    found = []
    for package, folder in folders.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found.append((".".join([package, *parts]).removesuffix(".__init__"), file))
    return found


def imported_by(module: str, file: Path, source: str) -> set[str]:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("sce_fast")}


def wrong_arrows(module: str, file: Path, source: str) -> list[str]:
    own = room_of(module)
    reached = {name: room_of(name) for name in imported_by(module, file, source)}
    return [
        f"{module} imports {name}, whose room {room} is below {own}"
        for name, room in sorted(reached.items())
        if LEVEL[room] > LEVEL[own]
    ]


def test_rooms_import_only_from_rooms_above_them():
    assert [arrow for module, file in modules() for arrow in wrong_arrows(module, file, file.read_text())] == []
