"""What the tests of faults share."""

import shutil
from pathlib import Path

import pytest

from helpers import faults, ranks
from helpers.videos import write_video_folder


@pytest.fixture
def tell(tmp_path):
    """tell(fault, codes, output, kept): docs/faults.md has to hold this row."""

    def compare(fault, codes, output, kept):
        faults.tell(fault, codes, faults.shown(output, tmp_path), kept)

    return compare


@pytest.fixture
def data(tmp_path, photo_folder) -> Path:
    return Path(shutil.copytree(photo_folder, tmp_path / "data"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, photo_folder):
    """undisturbed(ranks): the folder of a run like those of the fault tests, but without a fault."""
    runs: dict[int, Path] = {}

    def make(count=1) -> Path:
        if count not in runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            codes = ranks.command(faults.words(photo_folder, folder / "run"), folder / "told", ranks=count)
            assert codes == [0] * count, (folder / "told.0").read_text()
            runs[count] = folder / "run"
        return runs[count]

    return make


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory):
    return write_video_folder(tmp_path_factory.mktemp("videos"))
