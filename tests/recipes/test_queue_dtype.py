"""The dtype of a recipe's queue follows the device, is recorded in the run, and stays when the run is resumed."""

import json

import pytest

from sce_fast.cli import Recipe
from sce_fast.config import LossConfig, replace, to_json
from sce_fast.recipes import RECIPES
from sce_fast.train.folder import CONFIG
from sce_fast.train.log import LOG


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.mark.parametrize("name", RECIPES)
def test_the_queue_is_in_bfloat16_on_a_gpu_only(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert RECIPES[name]("nowhere").loss.queue_dtype == "float32"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert RECIPES[name]("nowhere").loss.queue_dtype == "bfloat16"
    assert RECIPES[name]("nowhere", device="cpu").loss.queue_dtype == "float32"


@pytest.mark.parametrize("name", ["folder", "videos", "demo"])
def test_a_given_dtype_stays(name, a_gpu):
    make = RECIPES[name]
    assert make("nowhere", loss={"queue_dtype": "float16"}).loss.queue_dtype == "float16"
    assert make("nowhere", loss={"temperature": 0.2}).loss.queue_dtype == "bfloat16"
    assert make("nowhere", loss=LossConfig()).loss == LossConfig()


@pytest.mark.parametrize("recorded", ["float32", "bfloat16"])
@pytest.mark.parametrize("gpu", [True, False])
def test_a_run_keeps_its_dtype_on_another_device(tmp_path, monkeypatch, recorded, gpu):
    """Also a run of an earlier version, which recorded float32 on a GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    config = replace(RECIPES["demo"]("data", tmp_path), loss={"queue_dtype": recorded})
    (tmp_path / CONFIG).write_text(json.dumps(to_json(config)))
    (tmp_path / LOG).write_text("{}\n")  # a step has been logged
    for options in ([], ["--device", "cpu"]):
        resumed, _ = Recipe(RECIPES["demo"]).parse("sce-fast", ["--resume", "--out", str(tmp_path), *options])
        assert resumed.resume
        assert resumed.loss == config.loss
