"""The Python examples of README and docs/training.md run."""

import re
import shutil
from pathlib import Path

import pytest

from sce_fast.tools.embed import embed

ROOT = Path(__file__).parents[1]


def examples(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_loss_of_the_readme():
    (code,) = examples("README.md")
    names: dict[str, object] = {}
    exec(code, names)
    assert names["student"].weight.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:epochs=3, and 2 before")
def test_training_from_python(photo_folder, tmp_path, monkeypatch):
    """Blocks of a section share their names. Those on feature files need the run that the last section makes."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "DIR"):
        shutil.copytree(photo_folder, name)
    page = examples("docs/training.md")
    on_files = [code for code in page if "features_DIR" in code]
    assert len(on_files) == 2
    names: dict[str, object] = {}
    for code in page:
        if code not in on_files:
            exec(code, names)
    assert names["summary"].epochs == 2
    assert names["features"].shape == (24, 32)
    assert names["loss"].isfinite()
    embed("runs/photos", "DIR")
    for code in on_files:
        exec(code, names)
    assert len(names["names"]) == 24
