"""The commands evaluate linear and evaluate semi-supervised on images whose classes are colours."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.backbones import write_backbone
from helpers.images import write_png
from helpers.interrupts import before_step, interrupt
from helpers.training import arguments
from sce_fast.data.faults import BadFilesError
from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.distributed import Ranks
from sce_fast.evaluate import linear as linear_protocol
from sce_fast.evaluate import semi_supervised as semi_supervised_protocol
from sce_fast.evaluate.class_labels import labelled_indices
from sce_fast.evaluate.supervised.classifier import Classifier
from sce_fast.evaluate.supervised.images import image_batches, train_view
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.testing import count_right
from sce_fast.export import open_backbone
from sce_fast.tools.embed import embed
from sce_fast.tools.evaluate import knn
from sce_fast.tools.linear import linear
from sce_fast.tools.semi_supervised import semi_supervised
from sce_fast.tools.training_options import TrainingOptions

CPU = torch.device("cpu")
COLOURS = {"blue": (40, 60, 220), "green": (60, 200, 60), "red": (210, 50, 50)}


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """Return a folder with a backbone and labelled images: train (20 of each of 3 colours) and test (7 of each)."""
    root, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 7)):
        for name, colour in COLOURS.items():
            for i in range(count):
                height, width = random.integers(32, 40, 2)
                noise = random.integers(-30, 31, (height, width, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                write_png(root / part / name / f"{part}{i:02d}.png", pixels)
    write_backbone(root / "backbone.safetensors", resize=36)
    return root


def sets(colours):
    return {"train": colours / "train", "test": colours / "test", "device": "cpu", "loader_threads": 1}


@pytest.mark.parametrize("crop", ["resized", pytest.param("padded", marks=pytest.mark.slow), "centre"])
def test_colours_are_told_apart(colours, tmp_path, crop, capsys):
    found = linear(
        colours / "backbone.safetensors",
        **sets(colours),
        training=TrainingOptions(epochs=8, batch_size=30, evaluate_every=4),
        learning_rates=(0.01, 1.0),
        crop=crop,
        out=tmp_path / "out",
    )
    assert found.rows[1]["top1"] == 1.0
    assert [at["epoch"] for at in found.rows[1]["history"]] == [4, 8]
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["rows"] == found.rows
    assert (written["settings"]["crop"], written["settings"]["scaling"]) == (crop, "linear")
    assert written["settings"]["view"]["resize"] == 36
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "table.txt").read_text() in printed
    assert "accuracy.png, classifier.safetensors, log.jsonl, results.json, settings.json, table.txt" in printed
    head = load_file(tmp_path / "out" / "classifier.safetensors")["head1.weight"]
    assert head.shape == (3, open_backbone(colours / "backbone.safetensors").network.dim)


def test_the_backbone_of_a_linear_evaluation_keeps_its_bits(colours):
    """Its batch statistics, too: it stays in eval mode."""
    network = open_backbone(colours / "backbone.safetensors").network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    classifier = Classifier(network, network.dim, 3, SupervisedSettings(batch_size=4), CPU)
    classifier.step([(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))], number=0, steps_per_epoch=1)
    assert not network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_counts_do_not_depend_on_the_test_batches(colours):
    backbone = open_backbone(colours / "backbone.safetensors")
    view = backbone.description.view()
    train, test = labelled_indices(colours / "train", colours / "test", view, threads=1)
    settings = SupervisedSettings(batch_size=20, learning_rates=(1.0, 10.0), precision="float64")
    classifier = Classifier(backbone.network, backbone.network.dim, 3, settings, CPU)
    found = []
    for size, ranks in ((21, 1), (2, 1), (4, 3)):
        counts = []
        for rank in range(ranks):
            places = {"ranks": Ranks(rank, ranks), "threads": 1, "device": CPU}
            batches = image_batches(train, test, view, settings.__class__(batch_size=60), crop="resized", **places)
            batches._settings["batch_size"] = size
            counts.append(count_right(classifier, batches.tests(), Ranks()))
            assert batches.test_samples == 21 // ranks
        found.append([sum(getattr(c, name) for c in counts).tolist() for name in ("right", "among_five", "samples")])
    assert found[0] == found[1] == found[2]
    assert found[0][2] == [7, 7, 7]


def test_presets_are_the_published_settings():
    """facts: official configs of CEA-LIST/SCE for linear evaluation; SwAV's README and eval_semisup.py."""
    moco = {
        "epochs": 100, "learning_rates": (30.0,), "scaling": "none", "schedule": "steps", "milestones": (60, 80),
        "decay": 0.1,
    }  # fmt: skip
    cosine = {"epochs": 90, "learning_rates": (0.1,), "scaling": "linear", "schedule": "cosine", "milestones": ()}
    swav = {
        "epochs": 20, "batch_size": 256, "schedule": "steps", "milestones": (12, 16), "decay": 0.2,
        "batch_norm": "sync",
    }  # fmt: skip
    expected = [
        (linear_protocol.PRESETS["imagenet"], {**cosine, "batch_size": 1024}, ("resized", 224, 256), 0.4),
        (linear_protocol.PRESETS["imagenet-moco"], {**moco, "batch_size": 512}, ("resized", 224, 256), 30),
        (linear_protocol.PRESETS["cifar10"], {**moco, "batch_size": 256}, ("padded", 32, 32), 30),
        (semi_supervised_protocol.PRESETS["1%"], {**swav, "backbone_learning_rate": 0.02}, ("resized", 224, 256), 5),
        (semi_supervised_protocol.PRESETS["10%"], {**swav, "backbone_learning_rate": 0.01}, ("resized", 224, 256), 0.2),
    ]
    for preset, settings, crop, rate in expected:
        own = preset.settings
        assert {name: getattr(own, name) for name in settings} == settings
        assert (own.momentum, own.weight_decay, own.warmup_epochs, own.precision) == (0.9, 0, 0, "float32")
        assert (preset.crop, preset.size, preset.resize) == crop
        assert own.rate(own.learning_rates[0], 0, 10) == pytest.approx(rate)
    view = EvaluationView(resize=256, crop=224, mean=(0.1, 0.2, 0.3))
    same = {"size": 224, "mean": view.mean, "std": view.std, "flip": 0.5}
    assert train_view("resized", view) == Augmentation(**same, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    assert train_view("padded", view) == Augmentation(**same, padding=4)


@pytest.mark.slow
def test_a_preset_sets_the_sizes_and_options_change_it(colours, tmp_path):
    found = linear(
        colours / "backbone.safetensors", **sets(colours), preset="cifar10",
        training=TrainingOptions(epochs=2, batch_size=60, schedule="cosine"), out=tmp_path,
    )  # fmt: skip
    settings = found.settings
    assert (settings["view"]["crop"], settings["view"]["resize"], settings["crop"]) == (32, 32, "padded")
    assert (settings["learning_rates"], settings["scaling"]) == ([30.0], "none")
    assert (settings["epochs"], settings["schedule"], settings["milestones"]) == (2, "cosine", [])


def test_a_bad_train_file_aborts_the_evaluation(colours, tmp_path):
    shutil.copytree(colours / "train", tmp_path / "train")
    path = tmp_path / "train" / "red" / "train05.jpg"
    Image.open(path.with_suffix(".png")).save(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(BadFilesError, match=r"red/train05.jpg: truncated or damaged\nEvaluations never skip images"):
        linear(
            colours / "backbone.safetensors", **{**sets(colours), "train": tmp_path / "train"},
            training=TrainingOptions(epochs=1, batch_size=61), out=tmp_path / "out",
        )  # fmt: skip


def tune(colours, out, **changes):
    settings = {"epochs": 2, "milestones": (1,), "batch_size": 15, "backbone_learning_rate": 0.1, **changes}
    return semi_supervised(colours / "backbone.safetensors", **sets(colours), out=out, **arguments(settings))


def test_fine_tuning_on_a_share_trains_the_backbone(colours, tmp_path):
    found = tune(colours, tmp_path, share=0.25)
    assert found.settings["part"]["images"] == 15
    assert found.rows[0]["backbone_learning_rate"] == 0.1
    assert [at["epoch"] for at in found.rows[0]["history"]] == [1, 2]
    saved = load_file(tmp_path / "classifier.safetensors")
    before = open_backbone(colours / "backbone.safetensors").network.state_dict()
    trained = {name.removeprefix("backbone."): t for name, t in saved.items() if name.startswith("backbone.")}
    assert trained.keys() == before.keys()
    assert all(not torch.equal(trained[name], t) for name, t in before.items() if t.dim() > 1)
    assert not torch.equal(trained["bn1.running_mean"], before["bn1.running_mean"])


@pytest.mark.slow
def test_results_of_changed_images_are_not_resumed(colours, tmp_path):
    root = shutil.copytree(colours, tmp_path / "colours")
    network, paths = root / "backbone.safetensors", {"train": root / "train", "test": root / "test", "device": "cpu"}
    calls = [
        lambda **more: knn(network, **paths, neighbours=(1,), out=tmp_path / "knn", **more),
        lambda **more: linear(
            network,
            **paths,
            crop="centre",
            training=TrainingOptions(epochs=1, batch_size=20),
            out=tmp_path / "o",
            **more,
        ),
    ]
    found = [call() for call in calls]
    assert [call(resume=True) for call in calls] == found
    shutil.copy(root / "test" / "red" / "test00.png", root / "test" / "blue" / "test00.png")
    for call, name in zip(calls, (r"test_contents", r"test\.contents"), strict=True):
        with pytest.raises(ValueError, match=rf"{name}: '\w+' then, '\w+' now \(files have other lengths"):
            call(resume=True)


def test_fine_tuning_on_a_list_learns_colours_and_resumes_with_the_same_bits(colours, tmp_path):
    names = tmp_path / "list.txt"
    names.write_text("".join(f"{colour}/train{i:02d}.png\n" for colour in COLOURS for i in range(5)))
    settings = {"files": names, "epochs": 12, "milestones": (8,), "learning_rate": 2.0, "evaluate_every": 6}
    found = tune(colours, tmp_path / "whole", **settings)
    assert found.settings["part"] == {
        "images": 15, "fingerprint": found.settings["part"]["fingerprint"], "share": None, "per_class": None,
        "files": str(names), "seed": 0,
    }  # fmt: skip
    assert found.rows[0]["learning_rate"] == 2.0
    assert found.rows[0]["top1"] > 0.9

    with before_step(7, interrupt), pytest.raises(KeyboardInterrupt):
        tune(colours, tmp_path / "broken", **settings)
    assert tune(colours, tmp_path / "broken", **settings, resume=True) == found
    for name in ("results.json", "classifier.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_feature_files_of_embed_are_trained_on(colours, tmp_path):
    paths = {name: embed(colours / "backbone.safetensors", colours / name, out=tmp_path / f"{name}.safetensors")
             for name in ("train", "test")}  # fmt: skip
    training = TrainingOptions(epochs=8, batch_size=30, evaluate_every=4)
    settings = {"training": training, "learning_rates": (0.01, 1.0), "device": "cpu"}
    found = linear(**paths, **settings, out=tmp_path / "files")
    same = linear(
        colours / "backbone.safetensors", **{**sets(colours), **settings}, crop="centre", out=tmp_path / "images"
    )
    assert found.rows == same.rows
    with pytest.raises(ValueError, match="feature files have no folder for results: give one with --out"):
        linear(**paths, **settings)
    with pytest.raises(ValueError, match=r"test.safetensors holds features already: leave out \S+backbone.safetensors"):
        linear(colours / "backbone.safetensors", train=colours / "train", test=paths["test"], **settings)


@pytest.mark.slow
def test_the_example_of_the_documentation(colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("A", "train"), ("B", "test"), ("backbone.safetensors", "backbone.safetensors")):
        (tmp_path / name).symlink_to(colours / content)
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    code, *_ = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["best"] == 1.0


def test_what_is_missing_is_named(colours, tmp_path):
    with pytest.raises(ValueError, match=r"backbone.safetensors names no evaluation folders: give --train and --test"):
        linear(colours / "backbone.safetensors")
    with pytest.raises(ValueError, match=r"batch_size=1024 on 1 rank.s. is larger than the data set of 60 images"):
        linear(colours / "backbone.safetensors", **sets(colours), out=tmp_path)
    assert list(tmp_path.iterdir()) == []
