"""What a user who types something wrong is told."""

import subprocess
import sys

import pytest
import torch

from sce_fast import native
from sce_fast.cli import COMMANDS, main


def told(capsys, *arguments, status=2):
    with pytest.raises(SystemExit) as exit_info:
        main(list(map(str, arguments)))
    assert exit_info.value.code == status
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).replace("│", " ").split())


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        assert any(line.startswith((f"  {name}:", f"  {name} ")) for line in lines), name


@pytest.mark.parametrize("command", ["demo", "embed", "report", "train", "bench", "doctor", "parity"])
def test_every_command_has_help(capsys, command):
    assert "usage: sce-fast " + command in told(capsys, command, "--help", status=0)


def test_recipe_help_has_every_setting(capsys):
    text = told(capsys, "train", "folder", "--help", status=0)
    for option in ("--data", "--views.names", "--model.momentum-schedule", "--loss.target-temperature", "--resume"):
        assert option in text


def test_unknown_words_get_the_nearest(capsys):
    assert "unknown command 'trian': expected one of" in told(capsys, "trian")
    assert "did you mean 'train'?" in told(capsys, "trian")
    assert "unknown recipe 'foldr'" in (text := told(capsys, "train", "foldr"))
    assert "did you mean 'folder'?" in text
    assert "unknown benchmark 'loadr'" in told(capsys, "bench", "loadr")
    text = told(capsys, "train", "folder", "--data", "x", "--loss.temprature", "1")
    assert "Unrecognized options: --loss.temprature" in text
    assert "--loss.temperature" in text


def test_bad_input_ends_in_one_line(capsys, tmp_path, photo_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    nowhere = told(capsys, "train", "folder", "--data", tmp_path / "nowhere")
    assert "nowhere: no such folder or list file" in nowhere
    assert "Traceback" not in nowhere
    assert "no images found" in told(capsys, "train", "folder", "--data", tmp_path / "empty")
    assert "larger than the data set of 24 images" in told(capsys, "train", "folder", "--data", photo_folder)
    settings = ["train", "folder", "--data", photo_folder, "--batch-size", "8"]
    assert "loss.queue=8: expected at least the 16 keys" in told(capsys, *settings, "--loss.queue", "8")
    assert "loss.temperature=0.0: expected a number > 0" in told(capsys, *settings, "--loss.temperature", "0")
    assert "unknown augmentation in views.names 'stron'" in told(capsys, *settings, "--views.names", "weak", "stron")
    assert "is not a run folder" in told(capsys, "embed", tmp_path, photo_folder)
    assert "--data" in told(capsys, "train", "folder")
    assert "did you mean 'reference'" in told(capsys, *settings, "--loss.backend", "refrence")
    image = next(photo_folder.rglob("*.jpg"))
    assert "is one image; expected a folder" in told(capsys, "train", "folder", "--data", image)
    assert not (tmp_path / "runs").exists()  # nothing was left behind


def test_doctor_says_what_runs_and_what_does_not(capsys, monkeypatch):
    main(["doctor"])
    text = capsys.readouterr().out
    assert f"torch                 {torch.__version__.split('+')[0]}" in text
    assert "  cpu         float32, bfloat16, float16" in text
    assert "  reference   float64, float32, bfloat16, float16" in text
    monkeypatch.setattr(native, "_cpu", None)
    monkeypatch.setattr(native, "MISSING", "no such module")
    main(["doctor"])
    assert "  cpu         the CPU kernels are not built (no such module); install again" in capsys.readouterr().out


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert "pip install 'sce_fast[train]'" in told(capsys, "demo")


def test_train_and_embed_a_folder(capsys, tmp_path, photo_folder):
    settings = {
        "--data": photo_folder, "--out": tmp_path / "run", "--epochs": 1, "--batch-size": 8, "--device": "cpu",
        "--views.sizes": 32, "--model.backbone": "resnet18", "--model.width": 8, "--model.projector-hidden": 16,
        "--model.dim": 8, "--model.predictor-hidden": 16, "--loss.queue": 64, "--optimizer.warmup-epochs": 0,
    }  # fmt: skip
    main(["train", "folder", *(str(word) for pair in settings.items() for word in pair)])
    assert "3 steps at" in capsys.readouterr().out
    main(["embed", str(tmp_path / "run"), str(photo_folder)])
    assert "features_" in capsys.readouterr().out
    assert list((tmp_path / "run").glob("features_*.safetensors"))


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"nvidia.dali", "triton", "sklearn", "matplotlib", "tyro"}
    code = f"import sys, sce_fast; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
