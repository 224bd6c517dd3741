"""The commands evaluate linear and evaluate finetune on videos whose classes are colours."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from helpers.backbones import write_backbone
from helpers.clip_backbones import COLOURS, write_clip_backbone, write_colours
from helpers.interrupts import before_step, interrupt
from helpers.training import arguments
from sce_fast.distributed import Ranks
from sce_fast.evaluate import load_features
from sce_fast.evaluate.class_labels import labelled_indices
from sce_fast.evaluate.supervised.classifier import Classifier
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.testing import count_right
from sce_fast.evaluate.supervised.training import SupervisedTraining
from sce_fast.evaluate.supervised.videos import ClipViews, video_batches
from sce_fast.export import ForeignNetwork, open_backbone
from sce_fast.tools.chosen_sets import PublishedSplit
from sce_fast.tools.clip_options import ClipOptions
from sce_fast.tools.finetune import finetune
from sce_fast.tools.linear import linear

CPU = torch.device("cpu")
TRAIN, TEST = 4, 3  # videos of each colour
ONE_VIEW = ClipOptions(clips=1, crops=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Return a folder with a backbone and red, green and blue videos, also as two splits in UCF101's files.

    Each list of the second split names a file that does not exist.
    """
    root = tmp_path_factory.mktemp("videos")
    write_colours(root / "train", videos=TRAIN)
    write_colours(root / "test", videos=TEST, first=TRAIN)
    write_clip_backbone(root / "backbone.safetensors")
    split = root / "split"
    split.mkdir()
    (split / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(COLOURS, start=1)))
    for number, odd in ((1, ()), (2, (99,))):
        for part, numbers in (("train", range(TRAIN)), ("test", range(TRAIN, TRAIN + TEST))):
            for name in COLOURS:
                (root / "all" / name).mkdir(parents=True, exist_ok=True)
                for i in numbers:
                    (root / "all" / name / f"{i}.avi").unlink(missing_ok=True)
                    (root / "all" / name / f"{i}.avi").symlink_to(root / part / name / f"{i}.avi")
            names = [f"{name}/{i}.avi" for name in COLOURS for i in (*numbers, *(odd if name == "red" else ()))]
            (split / f"{part}list{number:02d}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def sets(videos):
    return {"train": videos / "train", "test": videos / "test", "device": "cpu", "loader_threads": 1}


def label_list(videos, label_of):
    """Write a list of the test videos with the class label_of(colour number, video number); return its path."""
    path, names = videos / "relabelled.txt", list(COLOURS)
    lines = [
        f"test/{name}/{TRAIN + i}.avi\t{names[label_of(c, i) % 3]}\n"
        for c, name in enumerate(names)
        for i in range(TEST)
    ]
    path.write_text("".join(lines))
    return path


def colours(videos, out, **changes):
    settings = {"epochs": 6, "batch_size": 12, "learning_rates": (0.3, 30.0), "evaluate_every": 3, **changes}
    settings = {"warmup_epochs": 1, "scaling": "none", "clips": ONE_VIEW, **settings}
    return linear(videos / "backbone.safetensors", **{**sets(videos), **arguments(settings)}, out=out)


@pytest.mark.slow
def test_colours_are_told_apart(videos, tmp_path, capsys):
    found = colours(videos, tmp_path / "out")
    assert found.rows[1]["top1"] == 1.0
    assert [at["epoch"] for at in found.rows[1]["history"]] == [3, 6]
    settings = found.settings
    assert settings["train"]["videos"] == 3 * TRAIN
    assert (settings["clips"]["size"], settings["clips"]["shorter_side"]) == (32, [32, 40])
    assert (settings["view"]["crop"], settings["view"]["clips"], settings["view"]["sampling"]["frames"]) == (32, 1, 2)
    assert "accuracy.png, classifier.safetensors, log.jsonl, results.json" in capsys.readouterr().out


@pytest.mark.slow
def test_thirty_views_of_constant_videos_give_the_answers_of_one(videos, tmp_path):
    """Of nine test videos, three are in a wrong class. Then the classes say nothing, and a third is right."""
    wrong, chance = (lambda colour, video: colour + (video == 0)), (lambda colour, video: video)
    found = []
    for labels, options in ((wrong, ONE_VIEW), (wrong, ClipOptions()), (chance, ONE_VIEW)):
        lists = {"train": train_list(videos), "test": label_list(videos, labels)}
        changes = {**lists, "clips": options, "learning_rates": (30.0,), "epochs": 4, "evaluate_every": 4}
        found.append(colours(videos, tmp_path / str(len(found)), **changes))
    one, thirty, random = found
    assert thirty.settings["view"]["clips"] * thirty.settings["view"]["crops"] == 30
    assert one.rows == thirty.rows
    for result, top1 in ((one, 2 / 3), (random, 1 / 3)):
        assert result.rows[0]["top1"] == pytest.approx(top1)
        assert result.rows[0]["mean_per_class"] == pytest.approx(top1)


def train_list(videos):
    path = videos / "train.txt"
    path.write_text("".join(f"train/{name}/{i}.avi\t{name}\n" for name in COLOURS for i in range(TRAIN)))
    return path


@pytest.mark.slow
def test_counts_do_not_depend_on_the_test_batches(videos):
    backbone = open_backbone(videos / "backbone.safetensors")
    own = backbone.description.view()
    views = ClipViews(size=28, shorter_side=(32, 40), resize=32, test_size=32, clips=2, crops=3)
    view = views.test_view(own)
    train, test = labelled_indices(videos / "train", videos / "test", view, threads=1)
    settings = SupervisedSettings(batch_size=6, learning_rates=(1.0, 10.0), precision="float64")
    classifier = Classifier(backbone.network, backbone.network.dim, 3, settings, CPU)
    found = []
    for size, ranks in ((9, 1), (2, 3)):
        counts = []
        for rank in range(ranks):
            batches = video_batches(
                train, test, view, settings, augmentation=views.augmentation(view), device=CPU, ranks=Ranks(rank, ranks)
            )
            batches._settings["batch_size"] = size
            counts.append(count_right(classifier, batches.tests(), Ranks()))
        found.append([sum(getattr(c, name) for c in counts).tolist() for name in ("right", "among_five", "samples")])
        clips, labels = next(batches)
        assert (clips.shape, labels.shape) == ((6 // ranks, 3, 2, 28, 28), (6 // ranks,))
        batches.close()
    assert found[0] == found[1]
    assert found[0][2] == [3, 3, 3]


@pytest.mark.slow
def test_features_of_test_clips_are_computed_once_and_kept(videos, tmp_path):
    backbone = tmp_path / "backbone.safetensors"
    backbone.write_bytes((videos / "backbone.safetensors").read_bytes())
    settings = {"epochs": 8, "batch_size": 12, "learning_rates": (30.0,), "scaling": "none"}
    own = {**sets(videos), **arguments(settings)}
    found = linear(backbone, **own, crop="centre", clips=ClipOptions(clips=2), out=tmp_path / "a")
    assert found.rows[0]["top1"] == 1.0
    kept = {path.name.split("_")[0]: path for path in (tmp_path / "backbone_evaluations" / "features").iterdir()}
    assert load_features(kept["test"]).names == [f"{name}/{i}.avi" for name in sorted(COLOURS) for i in range(4, 7)]
    again = linear(train=kept["train"], test=kept["test"], **arguments({**settings, "warmup_epochs": 0}),
                   preset="kinetics400", device="cpu", out=tmp_path / "b")  # fmt: skip
    assert again.rows[0]["top1"] == 1.0


def tune(root, out, source=None, **changes):
    settings = {
        "learning_rate": 0.02, "epochs": 2, "batch_size": 6, "scaling": "none", "evaluate_every": 2, "size": 28,
        "resize": 32, "dropout": 0.2, "clips": ClipOptions(clips=1, crops=1, flip=0.5, jitter=0.0, grayscale=0.0),
    }  # fmt: skip
    places = {"device": "cpu", "loader_threads": 1, "out": out}
    return finetune(source or root / "backbone.safetensors", **arguments({**settings, **places, **changes}))


@pytest.mark.slow
def test_fine_tuning_trains_the_backbone_and_resumes_with_the_same_bits(videos, tmp_path):
    lists = {name: videos / name for name in ("train", "test")}
    found = tune(videos, tmp_path / "whole", **lists)
    assert found.rows[0]["backbone_learning_rate"] == found.rows[0]["learning_rate"] == 0.02
    saved = load_file(tmp_path / "whole" / "classifier.safetensors")
    before = open_backbone(videos / "backbone.safetensors").network.state_dict()
    assert all(not torch.equal(saved[f"backbone.{name}"], t) for name, t in before.items() if t.dim() > 1)

    with before_step(3, interrupt), pytest.raises(KeyboardInterrupt):
        tune(videos, tmp_path / "broken", **lists)
    assert tune(videos, tmp_path / "broken", **lists, resume=True) == found
    for name in ("results.json", "classifier.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


@pytest.mark.slow
def test_published_weights_are_fine_tuned(videos, tmp_path):
    """A file of weights says neither its network nor its clips; with both named, it is the exported backbone."""
    path = tmp_path / "weights.pth"
    torch.save(open_backbone(videos / "backbone.safetensors").network.state_dict(), path)
    clips = ClipOptions(clips=1, crops=1, frames=2, seconds=0.2, jitter=0.0, grayscale=0.0)
    changes = {**sets(videos), "epochs": 1, "clips": clips}
    named = ForeignNetwork(backbone="r3d18", width=4)
    found = tune(videos, tmp_path / "weights", path, **changes, foreign=named)
    assert found.rows == tune(videos, tmp_path / "exported", **changes).rows


@pytest.mark.slow
def test_two_splits_and_their_mean(videos, tmp_path, capsys):
    published = {"split": videos / "split", "videos": videos / "all", "split_numbers": (1, 2)}
    found = tune(videos, tmp_path / "both", **published)
    assert [row["split"] for row in found.rows] == ["1", "2", "mean"]
    first, second, mean = found.rows
    assert mean["top1"] == pytest.approx((first["top1"] + second["top1"]) / 2)
    assert first["history"] == second["history"]  # the second split lacks files that do not exist, and no others
    printed = capsys.readouterr()
    assert "1 of 13 files of trainlist02" in printed.err.replace(f"{videos}/split/", "")
    assert found.settings["split_number"] == [1, 2]
    assert found.settings["missing_test"] == [0, 1]
    assert (tmp_path / "both" / "accuracy.png").exists()
    assert (tmp_path / "both" / "table.txt").read_text() in printed.out
    with patch.object(SupervisedTraining, "_test", side_effect=AssertionError("a finished split is tested again")):
        assert tune(videos, tmp_path / "both", **published, resume=True) == found


@pytest.mark.slow
def test_fine_tuning_finds_known_answers(videos, tmp_path):
    """Right classes, a third of the test videos in a wrong one, and classes that say nothing; 30 views as one."""
    wrong, chance = (lambda colour, video: colour + (video == 0)), (lambda colour, video: video)
    rates = {"learning_rate": 3.0, "backbone_learning_rate": 0.001, "dropout": 0.0}
    how = {"train": train_list(videos), "epochs": 8, "batch_size": 12, "evaluate_every": 8, **rates}

    def top1(labels, **options):
        clips = ClipOptions(flip=0.5, jitter=0.0, grayscale=0.0, **options)
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        return tune(videos, out, test=label_list(videos, labels), clips=clips, **how).rows[0]["top1"]

    assert top1(lambda colour, video: colour, clips=1, crops=1) == 1.0
    assert top1(wrong, clips=1, crops=1) == top1(wrong) == pytest.approx(2 / 3)
    assert top1(chance, clips=1, crops=1) == pytest.approx(1 / 3)


def test_what_does_not_fit_is_named(videos, tmp_path):
    with pytest.raises(ValueError, match=r"split_numbers=\(2,\): expected none without --split"):
        tune(videos, tmp_path, **sets(videos), split_numbers=(2,))
    with pytest.raises(ValueError, match=r"split_numbers=\(1, 1\): expected one or more numbers, none twice"):
        tune(videos, tmp_path, split=videos / "split", videos=videos / "all", split_numbers=(1, 1))
    images = write_backbone(tmp_path / "images.safetensors")
    with pytest.raises(ValueError, match=r"images.safetensors is a backbone of images; expected one of clips"):
        finetune(images, **sets(videos))
    with pytest.raises(ValueError, match=r"clips=3, crops=1: expected none of them, since \S+ is a backbone of images"):
        linear(images, **sets(videos), clips=ClipOptions(clips=3, crops=1))
    with pytest.raises(ValueError, match=r"(?s)preset for videos.*cifar10"):
        colours(videos, tmp_path / "out", preset="cifar10")
    with pytest.raises(ValueError, match=r"crop='padded': expected scaled, resized or centre"):
        colours(videos, tmp_path / "out", crop="padded")
    features = {"train": tmp_path / "a.safetensors", "test": tmp_path / "b.safetensors"}
    message = r"size=32, frame_rate=25.0: expected none of them, since without a run, train and test are feature files"
    with pytest.raises(ValueError, match=message):
        linear(**features, size=32, clips=ClipOptions(frame_rate=25.0))
    with pytest.raises(ValueError, match=r"split=\S+: give a run or an exported backbone"):
        linear(**features, published=PublishedSplit(split=videos / "split", videos=videos / "all"))
    assert not (tmp_path / "out").exists()
