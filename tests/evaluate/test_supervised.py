"""Training linear heads on features in memory: steps, schedules, accuracies, stopping and resuming."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import one_hot

from helpers.runs import repeated
from sce_fast.distributed import Ranks
from sce_fast.evaluate.supervised.batches import StoredBatches
from sce_fast.evaluate.supervised.classifier import Classifier, linear_head
from sce_fast.evaluate.supervised.run import Setup, run_supervised
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.testing import count_right
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.stop import Stopped

CPU = torch.device("cpu")
CLASSES = ["ape", "bat", "cat"]


def clouds(rows=120, classes=3, spread=0.3, dtype=torch.float32):
    """Return features of well separated classes and their labels."""
    labels = torch.arange(rows) % classes
    return (4 * one_hot(labels, 5) + spread * torch.randn(rows, 5)).to(dtype), labels


def setup(features, labels, settings, test=None, ranks=None, classes=CLASSES, batches=StoredBatches):
    made = batches(
        features, labels, *(test or (features, labels)), batch_size=settings.batch_size, seed=settings.seed, ranks=ranks
    )
    return Setup("linear", nn.Identity(), features.shape[1], classes, made, settings, {})


def train(folder, *arguments, resume=False, **more):
    return run_supervised(setup(*arguments, **more), folder, device=CPU, resume=resume)


def test_separable_classes_are_learned_and_shuffled_labels_are_chance(tmp_path):
    settings = SupervisedSettings(epochs=10, batch_size=60, learning_rates=(0.1, 1.0), evaluate_every=4)
    features, labels = clouds()
    found = train(tmp_path / "a", features, labels, settings)
    assert [row["learning_rate"] for row in found.rows] == [0.1, 1.0]
    assert [at["epoch"] for at in found.rows[0]["history"]] == [4, 8, 10]
    assert found.rows[1]["top1"] == found.rows[1]["best_top1"] == found.rows[1]["mean_per_class"] == 1.0
    assert found.rows[1]["top5"] is None

    features, labels = torch.randn(600, 5), torch.randint(8, (600,))
    test = torch.randn(4000, 5), torch.arange(4000) % 8
    settings = SupervisedSettings(epochs=3, batch_size=200, learning_rates=(1.0,))
    row = train(tmp_path / "b", features, labels, settings, test, classes=list("abcdefgh")).rows[0]
    assert row["top1"] == pytest.approx(1 / 8, abs=0.03)
    assert row["top5"] == pytest.approx(5 / 8, abs=0.04)


def test_steps_worked_by_hand():
    """Two steps of SGD with momentum on cross-entropy; only the weights decay."""
    settings = SupervisedSettings(
        epochs=2, batch_size=4, learning_rates=(0.5,), scaling="none", momentum=0.9, weight_decay=0.1,
        schedule="steps", milestones=(1,), precision="float64", seed=7,
    )  # fmt: skip
    features, labels = clouds(rows=4, dtype=torch.float64)
    classifier = Classifier(nn.Identity(), 5, 3, settings, CPU)
    x, y = features.numpy(), one_hot(labels, 3).numpy()
    w, b = linear_head(5, 3, seed=7).weight.detach().double().numpy(), np.zeros(3)
    speed_w, speed_b = np.zeros_like(w), np.zeros_like(b)
    for number, rate in enumerate((0.5, 0.05)):
        logits = x @ w.T + b
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        loss = -np.log(p[y == 1]).mean()
        speed_w = 0.9 * speed_w + (p - y).T @ x / 4 + 0.1 * w
        speed_b = 0.9 * speed_b + (p - y).mean(0)
        w, b = w - rate * speed_w, b - rate * speed_b
        found = classifier.step([(features, labels)], number=number, steps_per_epoch=1)
        assert found.tolist() == pytest.approx([loss], rel=1e-12)
    head = classifier.learners[0].head
    assert np.abs(head.weight.detach().numpy() - w).max() < 1e-12
    assert np.abs(head.bias.detach().numpy() - b).max() < 1e-12


def test_full_batches_converge_to_the_optimum_of_scikit_learn(tmp_path):
    from sklearn.linear_model import LogisticRegression

    features = torch.randn(200, 5, dtype=torch.float64)
    labels = (features[:, 0] > 0).long() + (features[:, 1] > 0.5).long()
    settings = SupervisedSettings(
        epochs=600, batch_size=200, learning_rates=(1.0,), scaling="none", weight_decay=0.05, schedule="steps",
        precision="float64", evaluate_every=600,
    )  # fmt: skip
    row = train(tmp_path, features, labels, settings).rows[0]
    exact = LogisticRegression(C=1 / (200 * 0.05), solver="newton-cg", tol=1e-12).fit(features, labels)
    head = load_file(tmp_path / "classifier.safetensors")
    for ours, theirs in ((head["head0.weight"], exact.coef_), (head["head0.bias"], exact.intercept_)):
        theirs = torch.from_numpy(theirs)
        assert ((ours - ours.mean(0)) - (theirs - theirs.mean(0))).abs().max() < 1e-9  # a shift of all classes is free
    assert row["top1"] == exact.score(features, labels)


def test_a_head_does_not_depend_on_the_other_heads(tmp_path):
    features, labels = clouds()
    common = {"epochs": 3, "batch_size": 40, "warmup_epochs": 1}
    for name, rates in (("all", (0.1, 3.0, 30.0)), ("one", (3.0,))):
        train(tmp_path / name, features, labels, SupervisedSettings(**common, learning_rates=rates))
    together, alone = (load_file(tmp_path / name / "classifier.safetensors") for name in ("all", "one"))
    assert torch.equal(together["head1.weight"], alone["head0.weight"])
    assert torch.equal(together["head1.bias"], alone["head0.bias"])
    assert not torch.equal(together["head0.weight"], alone["head0.weight"])


def test_a_head_that_is_not_finite_stops_alone(tmp_path):
    features, labels = clouds()
    features *= 1e3
    settings = SupervisedSettings(epochs=2, batch_size=60, learning_rates=(0.1, 3e38), scaling="none")
    with pytest.warns(UserWarning, match=r"the head of learning rate 3e\+38 is not finite in step 2; it keeps"):
        found = train(tmp_path / "a", features, labels, settings)
    assert found.rows[0]["top1"] == 1.0
    assert [row["not_finite_in_step"] for row in found.rows] == [None, 2]
    with pytest.raises(RuntimeError, match="step 1: the loss or gradient of the last head is not finite"):
        train(tmp_path / "b", features * torch.nan, labels, settings)


def test_accumulated_parts_are_one_batch():
    features, labels = clouds(rows=8, dtype=torch.float64)
    heads = []
    for parts in (1, 4):
        settings = SupervisedSettings(batch_size=8, accumulation=parts, precision="float64", learning_rates=(5.0,))
        classifier = Classifier(nn.Identity(), 5, 3, settings, CPU)
        pairs = zip(features.chunk(parts), labels.chunk(parts), strict=True)
        classifier.step(pairs, number=0, steps_per_epoch=10)
        heads.append(classifier.learners[0].head.weight)
    assert torch.allclose(*heads, rtol=0, atol=1e-14)


def test_several_views_are_scored_by_their_mean_probability():
    settings = SupervisedSettings(learning_rates=(0.1, 0.2))
    classifier = Classifier(nn.Identity(), 2, 2, settings, CPU)
    with torch.no_grad():
        classifier.learners[0].head.weight.copy_(torch.eye(2))
    views = torch.tensor(
        [[[4.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]
    )  # one sample; by the mean logit class 0 would win clearly
    first, second = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(1))
    assert classifier.scores(views)[0, 0, 0].item() == pytest.approx((first + 2 * second) / 3)
    assert classifier.scores(views[:, :1])[0].tolist() == [[4.0, 0.0]]


def test_counts_add_up_over_batches_and_ranks():
    features, labels = torch.randn(103, 5), torch.randint(7, (103,))
    classifier = Classifier(nn.Identity(), 5, 7, SupervisedSettings(learning_rates=(0.1, 1.0)), CPU)
    found = []
    for ranks, size in ((1, 103), (1, 1), (4, 10)):
        parts = [
            StoredBatches(features, labels, features, labels, batch_size=8, test_batch_size=size, ranks=Ranks(r, ranks))
            for r in range(ranks)
        ]
        counts = [count_right(classifier, part.tests(), Ranks()) for part in parts]
        found.append([sum(getattr(c, name) for c in counts) for name in ("right", "among_five", "samples")])
    for name in range(3):
        assert torch.equal(found[0][name], found[1][name])
        assert torch.equal(found[0][name], found[2][name])
    scores = classifier.scores(features[:, None])[1]
    counts = count_right(classifier, iter([(features[:, None], labels)]), Ranks())
    accuracy = counts.accuracies()[1]
    assert accuracy.top1 == pytest.approx((scores.argmax(1) == labels).double().mean().item())
    top5 = (scores.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    assert accuracy.top5 == pytest.approx(top5)
    each = [(scores[labels == c].argmax(1) == c).double().mean().item() for c in labels.unique()]
    assert accuracy.mean_per_class == pytest.approx(np.mean(each))


def test_learning_rates_of_the_schedules():
    cosine = SupervisedSettings(epochs=90, batch_size=1024, learning_rates=(0.1,))
    rates = [cosine.rate(0.1, step, 100) for step in (0, 4500, 8999)]
    assert rates == pytest.approx([0.4, 0.2, 0.4 * (1 + math.cos(math.pi * 8999 / 9000)) / 2])
    warm = SupervisedSettings(epochs=60, batch_size=512, learning_rates=(2.0,), warmup_epochs=8)
    rates = [warm.rate(2.0, step, 10) for step in (0, 79, 80, 340, 599)]
    expected = [0, 4, 4, 2, 4 * (1 + math.cos(math.pi * 519 / 520)) / 2]
    assert rates == pytest.approx(expected)
    steps = SupervisedSettings(epochs=100, scaling="sqrt", batch_size=64, schedule="steps", milestones=(60, 80))
    assert [steps.rate(30.0, step, 10) for step in (0, 599, 600, 799, 800, 999)] == pytest.approx(
        [15, 15, 1.5, 1.5, 0.15, 0.15]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": ()}, r"learning_rates=\(\): expected one or more numbers > 0"),
        ({"learning_rates": (1.0, 1.0)}, r"learning_rates=\(1.0, 1.0\): expected no rate twice"),
        (
            {"learning_rates": (1.0, 2.0), "backbone_learning_rate": 0.1},
            "expected one rate, since the backbone is trai",
        ),
        ({"milestones": (3,)}, r"milestones=\(3,\): expected none, unless schedule='steps'"),
        ({"schedule": "steps", "milestones": (5, 3)}, r"milestones=\(5, 3\): expected rising epochs from 1 on"),
        ({"schedule": "steps", "milestones": (90,)}, r"milestones=\(90,\): expected epochs before epochs=90"),
        ({"warmup_epochs": 91}, r"warmup_epochs=91: expected 0 to 90"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        SupervisedSettings(**changes)


class Interrupted(StoredBatches):
    """Batches that call `fault` when one of them, or a test, is asked for the n-th time."""

    def __init__(self, *arguments, fault, at=-1, at_test=-1, **settings):
        super().__init__(*arguments, **settings)
        self.fault, self.at, self.at_test, self.count, self.count_tests = fault, at, at_test, 0, 0

    def __next__(self):
        self.count += 1
        if self.count == self.at:
            self.fault()
        return super().__next__()

    def tests(self):
        self.count_tests += 1
        if self.count_tests == self.at_test:
            self.fault()
        yield from super().tests()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def crash():
    raise RuntimeError("power failure")


@pytest.mark.parametrize(
    ("fault", "raised", "when", "resumed_at"),
    [
        (terminate, Stopped, {"at": 7}, 7),
        (crash, RuntimeError, {"at": 10}, 8),
        (terminate, Stopped, {"at_test": 2}, 12),
        (crash, RuntimeError, {"at_test": 3}, 15),
    ],
)
def test_a_resumed_evaluation_has_the_same_bits(tmp_path, fault, raised, when, resumed_at):
    settings = SupervisedSettings(
        epochs=5, batch_size=40, learning_rates=(0.1, 1.0), evaluate_every=2, checkpoint_every=4, log_every=2
    )
    features, labels = clouds(spread=2.0)
    whole = train(tmp_path / "whole", features, labels, settings)

    def broken(*arguments, **more):
        return Interrupted(*arguments, fault=fault, **when, **more)

    folder = tmp_path / "broken"
    with pytest.raises(raised):
        train(folder, features, labels, settings, batches=broken)
    assert checkpoints(folder / "checkpoints")[-1].name == f"step_{resumed_at:08d}"
    with pytest.raises(ValueError, match=r"out=\S+ holds an evaluation that has begun; pass --resume to go on"):
        train(folder, features, labels, settings)
    again = train(folder, features, labels, settings, resume=True)
    assert again == whole
    assert Path(folder / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()
    ours, theirs = (load_file(path / "classifier.safetensors") for path in (folder, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert repeated(folder / "log.jsonl") == repeated(tmp_path / "whole" / "log.jsonl")


def test_a_folder_with_other_results_is_refused(tmp_path):
    features, labels = clouds()
    settings = SupervisedSettings(epochs=1, batch_size=40)
    train(tmp_path, features, labels, settings)
    with pytest.raises(ValueError, match="holds results already; pass --resume to continue, or another --out"):
        train(tmp_path, features, labels, settings)
    other = SupervisedSettings(epochs=1, batch_size=60)
    with pytest.raises(ValueError, match=r"holds results with other settings.*\n  batch_size: 40 then, 60 now"):
        train(tmp_path, features, labels, other, resume=True)
    (tmp_path / "results.json").unlink()
    with pytest.raises(ValueError, match=r"holds an evaluation with other settings.*\n  batch_size: 40 then, 60 now"):
        train(tmp_path, features, labels, other, resume=True)


def test_a_batch_has_to_fit_the_train_set_and_the_ranks():
    features, labels = clouds(rows=30)
    with pytest.raises(ValueError, match="batch_size=40 is larger than the 30 train features"):
        setup(features, labels, SupervisedSettings(batch_size=40))
    with pytest.raises(ValueError, match=r"batch_size=30: expected a multiple of ranks=4 · accumulation=1"):
        SupervisedSettings(batch_size=30).rank_batch(4)
