"""The command line: help, messages for bad input, exit statuses."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.run import get_args_parser

import sce_fast
from sce_fast.cli import BENCHMARKS, COMMANDS, DISTRIBUTIONS, EVALUATIONS, Command, extra_with, main
from sce_fast.data.image.sizes import SizeReader
from sce_fast.data.index import ImageIndex
from sce_fast.data.sources import Listing, Names
from sce_fast.evaluate import save_features
from sce_fast.native import CPU

ROOT = Path(__file__).parents[1]


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


@pytest.mark.filterwarnings("ignore:the CPU kernels are not built")
def test_every_command_runs_a_documented_function():
    commands = [c for c in (*COMMANDS.values(), *EVALUATIONS.values(), *BENCHMARKS.values()) if isinstance(c, Command)]
    for command in commands:
        module, name = command.function.split(":")
        function = getattr(importlib.import_module(module), name)
        documented = inspect.getdoc(function)
        for parameter in inspect.signature(function).parameters:
            assert f"\n    {parameter}: " in documented, (command.function, parameter)


@pytest.mark.parametrize(
    "command", ["demo", "embed", "report", "train", "bench", "doctor", "parity", "scan", "evaluate", "export"]
)
def test_every_command_has_help(capsys, command):
    assert "usage: sce-fast " + command in told(capsys, command, "--help", status=0)


def test_recipe_help_has_every_setting(capsys):
    text = told(capsys, "train", "folder", "--help", status=0)
    for option in ("--data", "--views.names", "--model.momentum-schedule", "--loss.target-temperature", "--resume"):
        assert option in text


@pytest.mark.filterwarnings("ignore:the CPU kernels are not built")
def test_torchrun_leaves_every_option_alone(capsys):
    """Its parser looks at all words, and ends if one could be the beginning of several of its own options."""
    alone = ("parity", "bench")  # run in one process, and call the sizes of the loss --n, --d and --k
    commands = [[name] for name, command in COMMANDS.items() if isinstance(command, Command) and name not in alone]
    commands += [["train", "folder"], *(["evaluate", name] for name in EVALUATIONS)]
    parser, seen = get_args_parser(), set()
    for command in commands:
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        options = sorted(set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out)))
        seen |= set(options)
        words = [*command, *(word for option in options for word in (option, "1", f"{option}=1"))]
        try:
            found = parser.parse_args(["-m", "sce_fast", *words])
        except SystemExit:
            pytest.fail(f"torchrun -m sce_fast {' '.join(command)} …: {capsys.readouterr().err.splitlines()[-1]}")
        assert (found.training_script, found.training_script_args) == ("sce_fast", words)
    assert {"--first-second", "--train-features", "--loss.target-temperature"} <= seen


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
    assert "larger than the data set of 24 images" in told(
        capsys, "train", "folder", "--data", photo_folder, "--batch-size", 32
    )
    settings = ["train", "folder", "--data", photo_folder, "--batch-size", "8"]
    assert "loss.queue_size=7: expected at least the 8 keys" in told(capsys, *settings, "--loss.queue-size", "7")
    assert "loss.temperature=0.0: expected a number > 0" in told(capsys, *settings, "--loss.temperature", "0")
    assert "unknown augmentation in views.names 'stron'" in told(capsys, *settings, "--views.names", "weak", "stron")
    assert "is not a run folder" in told(capsys, "embed", tmp_path, photo_folder)
    assert "--data" in told(capsys, "train", "folder")
    assert "did you mean 'reference'" in told(capsys, *settings, "--loss.backend", "refrence")
    image = next(photo_folder.rglob("*.jpg"))
    assert "is one image; expected a folder" in told(capsys, "train", "folder", "--data", image)
    assert not (tmp_path / "runs").exists()  # nothing was left behind


def test_many_bad_files_stop_a_run_before_it_starts(capsys, tmp_path, photo_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photo_folder, tmp_path / "data")
    for path in list((tmp_path / "data" / "temple").iterdir())[:4]:
        path.write_bytes(b"")
    text = told(capsys, "train", "folder", "--data", tmp_path / "data", "--batch-size", "8")
    assert "more than 10% bad files: 4 of 24 files cannot be used (4 empty): " in text
    assert re.search(r"temple/\d+.jpg: empty", text)
    assert not (tmp_path / "runs").exists()


def test_scan_names_bad_files_and_tells_of_the_data(capfd, tmp_path, photo_folder):
    main(["scan", str(photo_folder)])
    text = capfd.readouterr().out
    assert re.search(r"24 image files in \S+\n2 classes of 12 to 12 files\nwidth × height: smallest ", text)
    assert re.search(r"24 files decoded in \d+\.\d s, \d+ images/s\n\nno bad files\n$", text)

    shutil.copytree(photo_folder, tmp_path / "data")
    temple = tmp_path / "data" / "temple"
    (temple / "010.jpg").write_bytes((temple / "010.jpg").read_bytes()[:-2])
    (temple / "empty\n.jpg").write_bytes(b"")
    (temple / "page.jpg").write_text("no image")
    listed = tmp_path / "bad.txt"
    text = told(capfd, "scan", tmp_path / "data", "--out", listed, status=1)
    assert "3 bad files" in text
    assert text.count("Image decoder: ") <= 2  # of each kind of error once
    assert "truncated or damaged: 1 temple/010.jpg" in text
    assert "empty: 1 temple/empty\\x0a.jpg not an image: 1 temple/page.jpg" in text
    assert listed.read_text().splitlines() == [
        f"{temple}/010.jpg\ttruncated or damaged",
        f"{temple}/empty\\x0a.jpg\tempty",
        f"{temple}/page.jpg\tnot an image",
    ]
    assert "exists already" in told(capfd, "scan", tmp_path / "data", "--out", listed)
    text = told(capfd, "scan", tmp_path / "data", "--quick", status=1)
    assert "2 bad files" in text
    assert "truncated files are not found" in text
    (tmp_path / "list.txt").write_text(f"{photo_folder}/temple/000.jpg\tx\ngone.jpg\ty\n")
    assert "missing: 1 gone.jpg" in told(capfd, "scan", tmp_path / "list.txt", status=1)
    assert "threads=0" in told(capfd, "scan", photo_folder, "--threads", "0")
    assert "no such folder or list file" in told(capfd, "scan", tmp_path / "nowhere")


def test_a_scan_can_be_interrupted(capsys, tmp_path, photo_folder, monkeypatch):
    def interrupted(self, *arguments):
        raise KeyboardInterrupt

    main(["scan", str(photo_folder), "--quick"])
    monkeypatch.setattr(SizeReader, "sizes", interrupted)
    text = told(capsys, "scan", photo_folder, "--out", tmp_path / "bad.txt", status=130)
    assert "sce-fast: interrupted" in text
    assert "Traceback" not in text
    assert not (tmp_path / "bad.txt").exists()


def test_doctor_says_what_runs_and_what_does_not(capsys, monkeypatch):
    main(["doctor"])
    text = capsys.readouterr().out
    assert f"torch                 {torch.__version__.split('+')[0]}" in text
    assert "  cpu         float32, bfloat16, float16" in text
    assert "  reference   float64, float32, bfloat16, float16" in text
    assert "  CUDA C++ on Hopper: a separate kernel (TMA, wgmma), tested in an emulator, not yet run on a GPU" in text
    assert "backend='auto' takes the first that serves the inputs: triton, cpu, reference\n" in text
    assert "by name only, until they have run on a GPU: cuda, cuda_sm80\n" in text
    assert "  on a CPU: DALI decodes mjpeg, vp8, vp9; PyAV av1, h264, hevc, mpeg4, other codecs," in text
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(CPU, "module", None)
    monkeypatch.setitem(sys.modules, "tyro", None)  # the first thing to run where something is missing
    main(["doctor"])
    text = capsys.readouterr().out
    assert "  cpu         the CPU kernels are not built; with a C++ compiler, install again" in text
    assert "Videos\n  none can be read: av is missing; the extras video and train have it\n" in text


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    text = told(capsys, "demo")
    assert re.search(r"; pip install ('\S+' )*'tyro>=\S+' '\S+'", text)  # with the rest of its extra


@pytest.mark.parametrize(
    "module",
    ["numpy", "tyro", "tqdm", "safetensors", "sklearn", "matplotlib", "PIL", "nvidia", "tensorboard", "triton", "onnx"],
)
def test_the_packages_metadata_knows_how_to_install_a_module(module):
    distribution = DISTRIBUTIONS.get(module, module)
    assert any(re.match(rf"{distribution}>=\d", requirement) for requirement in extra_with(distribution))


@pytest.mark.parametrize("module", ["torch", "timm"])
def test_modules_of_no_extra_get_no_advice(module):
    assert extra_with(module) == []


@pytest.mark.parametrize("arguments", [["doctor"], ["--help"], ["scan", "nowhere"], ["unknown"]])
def test_warnings_are_shown_as_before_once_a_command_has_ended(capsys, arguments):
    before = warnings.showwarning
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code in (0, 2)  # noqa: PT017
    assert warnings.showwarning is before


def test_train_and_embed_a_folder(capsys, tmp_path, photo_folder):
    settings = {
        "--data": photo_folder, "--out": tmp_path / "run", "--epochs": 1, "--batch-size": 8, "--device": "cpu",
        "--views.sizes": 32, "--model.backbone": "resnet18", "--model.width": 8, "--model.projector-hidden": 16,
        "--model.dim": 8, "--model.predictor-hidden": 16, "--loss.queue-size": 64, "--optimizer.warmup-epochs": 0,
    }  # fmt: skip
    main(["train", "folder", *(str(word) for pair in settings.items() for word in pair)])
    assert "3 steps at" in capsys.readouterr().out
    main(["embed", str(tmp_path / "run"), str(photo_folder)])
    (features,) = (tmp_path / "run").glob("features_*.safetensors")
    assert capsys.readouterr().out == f"{features}\n"

    folders = ["--train", str(photo_folder), "--test", str(photo_folder)]
    main(["evaluate", "knn", str(tmp_path / "run"), *folders, "--neighbours", "1", "3", "--device", "cpu"])
    table, files = capsys.readouterr().out.split("\n\nIn ")
    assert files == f"{tmp_path}/run/evaluations/knn: knn.png, results.json, table.txt\n"
    assert ": 24 train and 24 test images (24 of them in train), 2 classes, features of 64 numbers\n" in table
    share = r"[01]\.\d{4}"  # each image finds itself
    rows = rf"\nbackbone +1 +1\.0000 +1\.0000\nbackbone +3 +{share} +{share}\nmajority class +– +0\.5000 +0\.5000$"
    assert re.search(rows, table)
    main(["evaluate", "knn", "--train", str(features), "--test", str(features), "--neighbours", "1", "3"])
    assert capsys.readouterr().out == f"{table}\n"
    main(["evaluate", "logistic", "--train", str(features), "--test", str(features)])
    assert "C chosen by top-1 on a held-out fifth of train: C 0.001: " in capsys.readouterr().out

    exported = tmp_path / "backbone.safetensors"
    main(["export", str(tmp_path / "run"), "--out", str(exported), "--momentum"])
    assert capsys.readouterr().out == f"{exported}\n"
    assert "exists already" in told(capsys, "export", tmp_path / "run", "--out", exported)
    main(["embed", str(exported), str(photo_folder)])
    assert capsys.readouterr().out == f"{tmp_path}/{features.name}\n"
    text = told(capsys, "evaluate", "knn", tmp_path / "run")
    assert "names no evaluation folders: give --train and --test" in text
    expected = f"expected one of {', '.join(EVALUATIONS)}; did you mean 'knn'?"
    assert f"unknown evaluation 'knm': {expected}" in told(capsys, "evaluate", "knm")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["evaluate", "--help"]])
def test_the_package_and_its_help_load_nothing_heavy(arguments):
    heavy = {"torch", "numpy", "nvidia.dali", "triton", "sklearn", "matplotlib", "tyro"}
    code = f"""
import sys, sce_fast.cli
try:
    sce_fast.cli.main({arguments})
finally:
    print(sorted({heavy} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("\n[]\n")


def test_the_package_offers_its_names_at_first_use():
    code = """
import sys, sce_fast
assert set(sce_fast.__all__) <= set(dir(sce_fast))
from sce_fast import *
assert sce_loss.__name__ == "sce_loss" and KeyQueue is sce_fast.KeyQueue and SCE and SCELoss and SCEStatistics
print(hasattr(sce_fast, "no_such_name"), sce_fast.__version__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == f"False {sce_fast.__version__}\n"
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {sce_fast.__version__}\n" in citation


@pytest.mark.parametrize("module", ["sce_fast", "sce_fast.cli"])
def test_python_m_is_the_command(module):
    run = dict(capture_output=True, text=True)
    result = subprocess.run([sys.executable, "-m", module, "--version"], **run)
    assert (result.returncode, result.stdout) == (0, f"sce-fast {sce_fast.__version__}\n")
    result = subprocess.run([sys.executable, "-m", module, "trian"], **run)
    assert result.returncode == 2
    assert "did you mean 'train'?" in result.stderr


def test_evaluating_feature_files_needs_no_dali(tmp_path):
    file = tmp_path / "features.safetensors"
    listing = Listing(tmp_path, Names.of(f"{i}.jpg" for i in range(20)), np.arange(20) % 2, ["a", "b"])
    index = ImageIndex(listing, sizes=np.ones((20, 2), np.int32), traits=np.zeros(20, np.uint8), bad={})
    save_features(file, torch.eye(2).repeat(10, 1), index)
    code = f"""
import sys
from sce_fast.cli import main
sys.modules["nvidia"] = None
main(["evaluate", "knn", "--train", {str(file)!r}, "--test", {str(file)!r}])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("kNN, temperature 0.07: 20 train and 20 test images")
