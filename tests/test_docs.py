"""The Python examples of README, docs/training.md and docs/use_elsewhere.md run."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

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


LIGHTNING = "pytorch_lightning"


def test_use_elsewhere(photo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photo_folder, "photos")
    names: dict[str, object] = {}
    filled = []
    for code in examples("docs/use_elsewhere.md"):
        if LIGHTNING not in code:
            exec(code, names)
            filled.append(int(names["queue"].cursor) if "queue" in names else None)
    assert names["features"].shape == (2, 64)
    assert (tmp_path / "elsewhere.pkl").exists()
    assert filled[1] == 3 * 32
    assert names["loss"].isfinite()
    assert not torch.equal(names["teacher"][0].weight, names["student"][0].weight)
    assert names["position"] == {"epoch": 1, "step": 0}
    assert names["projections"].grad.abs().sum() > 0
    bank = names["criterion"].memory_bank
    assert int(bank.cursor) == 64
    torch.testing.assert_close(bank.keys[:64].norm(dim=1), torch.ones(64))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_use_in_lightning(photo_folder, tmp_path, monkeypatch):
    """Three epochs with a break after the second are three epochs without one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photo_folder, "photos")
    (code,) = (code for code in examples("docs/use_elsewhere.md") if LIGHTNING in code)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(code, names)
    assert names["module"].position == {"epoch": 2, "step": 0}
    assert int(names["module"].queue.cursor) == 2 * 3 * 2 * 8 % 64
    resumed = names["resumed"]
    assert resumed.position == {"epoch": 3, "step": 0}
    torch.manual_seed(0)
    whole = names["pretraining"]()
    names["lightning"].Trainer(max_epochs=3, **names["settings"]).fit(whole)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
