"""What is refused before a run folder is made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers.images import write_png
from helpers.runs import small_config
from sce_fast.config import EvaluationConfig, replace
from sce_fast.data.index import index_images
from sce_fast.recipes import demo
from sce_fast.train import Trainer, train
from sce_fast.train.preflight import describe_long_queue, require_apart


class Square(nn.Module):
    """A network for images of 32 pixels only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 8)

    def forward(self, x):
        return self.layer(x.flatten(1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what cannot run without a GPU")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"backend": "triton"}}, "loss.backend='triton' cannot serve this call: .* on cpu; move them to"),
        ({"loss": {"backend": "cuda"}}, "loss.backend='cuda' cannot serve this call: "),
        ({"loss": {"backend": "cpu"}, "precision": "float64"}, "loss.backend='cpu' .*: it computes in float32, and an"),
        ({"device": "cuda"}, "device='cuda': torch sees no CUDA device"),
        (
            {"views": {"sizes": (32, 16)}},
            r"model.backbone='own' does not take images of 16 pixels in precision='float32'",
        ),
        ({"evaluation": {"resize": 40, "crop": 40}}, "model.backbone='own' does not take images of 40 pixels"),
    ],
)
def test_what_cannot_run_here_leaves_no_run_folder(photo_folder, tmp_path, changes, message):
    config = small_config(photo_folder, tmp_path / "run", evaluation=EvaluationConfig())
    with pytest.raises(ValueError, match=message):
        Trainer(replace(config, **changes), backbone=Square())
    assert not config.out.exists()


def test_a_compiler_that_does_not_work_leaves_no_run_folder(photo_folder, tmp_path, monkeypatch):
    def fail(*inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **settings: fail)
    config = small_config(photo_folder, tmp_path / "run", compile=True, evaluation=EvaluationConfig())
    with pytest.raises(ValueError, match=r"compile=True: torch.compile does not work here: no compiler"):
        Trainer(config)
    assert not config.out.exists()


def test_the_checks_change_nothing(photo_folder, tmp_path, monkeypatch):
    def state():
        torch.manual_seed(7)
        trainer = Trainer(small_config(photo_folder, tmp_path / "run", evaluation=EvaluationConfig()))
        return trainer.model.state_dict(), torch.get_rng_state(), trainer.model.training

    checked = state()
    monkeypatch.setattr("sce_fast.train.trainer.require_runnable", lambda step: None)
    plain = state()
    assert checked[2]
    assert plain[2]
    assert torch.equal(checked[1], plain[1])
    assert all(torch.equal(t, plain[0][name]) for name, t in checked[0].items())


@pytest.fixture
def photos(tmp_path) -> Path:
    for name in ("photos/cats/1.png", "photos/dogs/deep/2.png", "elsewhere/3.png"):
        write_png(tmp_path / name, np.zeros((8, 8, 3), dtype=np.uint8))
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "way").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "list.txt").write_text("cats/1.png\n../elsewhere/3.png\n")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("data", "out"),
    [
        ("photos", "photos"),
        ("photos", "photos/run"),
        ("photos", "photos/cats/a/b"),
        ("photos", "elsewhere/run"),  # the data folder holds a link to elsewhere
        ("way", "photos/run"),
        ("photos", "way/run"),
        ("photos/../photos/", "photos/dogs/../run"),
    ],
)
def test_a_run_folder_among_the_images_is_refused(photos, tmp_path, data, out):
    config = small_config(tmp_path / data, tmp_path / out, batch_size=2, evaluation=EvaluationConfig())
    with pytest.raises(ValueError, match=r"out=\S+ (is|lies in) data=\S+, where its pictures would lie among"):
        require_apart(config, {"data": index_images(config.data)})
    with pytest.raises(ValueError, match=r"out=\S+ (is|lies in) data="):
        train(config)
    assert not (tmp_path / out / "config.json").exists()


@pytest.mark.parametrize(
    ("data", "out"),
    [("photos", "photos2"), ("photos/list.txt", "photos/run"), ("photos/cats", "photos/run"), ("photos", ".")],
)
def test_a_run_folder_beside_the_images_is_accepted(photos, tmp_path, data, out):
    config = small_config(tmp_path / data, tmp_path / out)
    require_apart(config, {"data": index_images(config.data)})


def test_the_images_of_the_evaluation_count_too(photos, tmp_path):
    config = small_config(tmp_path / "photos", tmp_path / "elsewhere" / "run")
    config = replace(config, evaluation={"train": tmp_path / "elsewhere", "test": tmp_path / "elsewhere"})
    with pytest.raises(ValueError, match=r"lies in evaluation.train=\S+elsewhere"):
        require_apart(config, {"evaluation.train": index_images(tmp_path / "elsewhere")})


def test_images_where_the_run_removes_files_are_refused(tmp_path):
    write_png(tmp_path / "run" / "tensorboard" / "1.png", np.zeros((8, 8, 3), dtype=np.uint8))
    config = small_config(tmp_path / "run" / "tensorboard", tmp_path / "run")
    with pytest.raises(ValueError, match=r"lies in tensorboard of out=.* where the run removes files"):
        require_apart(config, {"data": index_images(config.data)})


def test_the_demos_folders_are_accepted(tmp_path):
    for part in ("train", "test"):
        write_png(tmp_path / "data" / "digits" / part / "0" / "1.png", np.zeros((8, 8, 3), dtype=np.uint8))
    config = demo(tmp_path / "data/digits/train", tmp_path / "runs/demo", test=tmp_path / "data/digits/test")
    require_apart(config, {"data": index_images(config.data), "evaluation.test": index_images(config.evaluation.test)})


def test_a_file_as_run_folder_is_named(tmp_path, photo_folder):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out=\S+file is a file; expected a folder"):
        train(small_config(photo_folder, tmp_path / "file"))


@pytest.mark.parametrize(
    ("queue_size", "symmetric", "said"),
    [
        (24, False, "loss.queue_size=24: the queue holds the keys of all 24 images"),
        (16, False, "the queue holds the keys of 67% of the 24 images"),
        (40, True, "the queue holds the keys of 83% of the 24 images"),  # two keys an image
        (24, True, None),
        (12, False, None),
    ],
)
def test_a_queue_of_most_images_is_a_warning(tmp_path, queue_size, symmetric, said):
    config = small_config(tmp_path, tmp_path / "run", batch_size=8)
    config = replace(config, loss={"queue_size": queue_size}, model={"symmetric": symmetric})
    text = describe_long_queue(config, 24)
    assert text is None if said is None else said in text


def test_a_run_says_that_its_queue_is_long(photo_folder, tmp_path, capsys):
    Trainer(small_config(photo_folder, tmp_path / "run"))
    assert capsys.readouterr().err.count("Warning: loss.queue_size=40: the queue holds the keys of 83%") == 1
