"""The command evaluate linear: the papers' linear classifiers on a frozen backbone."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn

from sce_fast.config import Device, default_loader_threads
from sce_fast.config.batch import Scaling
from sce_fast.distributed import Ranks, process_group
from sce_fast.evaluate.linear import PRESETS
from sce_fast.evaluate.results import EvaluationResult, evaluations_folder, require_room
from sce_fast.evaluate.store import FeatureStore, weights_digest
from sce_fast.evaluate.supervised.batches import LabelledBatches
from sce_fast.evaluate.supervised.images import Crop, feature_batches, image_batches
from sce_fast.evaluate.supervised.run import Setup
from sce_fast.evaluate.supervised.settings import Precision, Schedule, SupervisedSettings
from sce_fast.export import ForeignNetwork
from sce_fast.tools.arguments import ForeignNetworkWeights, OptionalClasses, OptionalFolder, OptionalImages, OptionalRun
from sce_fast.tools.frozen import FEATURES, architecture_of
from sce_fast.tools.labelled_sets import labelled_sets
from sce_fast.tools.supervised import Task, evaluated, open_task, preset_of
from sce_fast.train.folder import choose_device

Name = Literal["imagenet", "imagenet-moco", "cifar10"]


def linear(
    run: OptionalRun = None,
    /,
    *,
    train: OptionalImages = None,
    test: OptionalImages = None,
    classes: OptionalClasses = None,
    preset: Name | None = None,
    learning_rates: tuple[float, ...] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    accumulation: int | None = None,
    scaling: Scaling | None = None,
    schedule: Schedule | None = None,
    milestones: tuple[int, ...] | None = None,
    decay: float | None = None,
    warmup_epochs: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    crop: Crop | None = None,
    size: int | None = None,
    resize: int | None = None,
    precision: Precision | None = None,
    seed: int | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int | None = None,
    foreign: ForeignNetworkWeights = ForeignNetwork(),  # noqa: B008 (frozen)
    device: Device = "auto",
    loader_threads: int | None = None,
    out: OptionalFolder = None,
    resume: bool = False,
) -> EvaluationResult:
    """Train linear classifiers on a frozen backbone by SGD on augmented images, as the papers do; print a table.

    Several learning rates are trained at once: each has a head of its own on the same features. Runs under torchrun.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere. Leave it out if train and test
            are feature files.
        train: Class folders, a list file with classes, or a feature file of sce-fast embed; by default the run's own.
        test: Images to classify, in the same forms; by default the run's own.
        classes: Evaluate these classes of both sets: a list file of their names, one a line, or imagenet100. Default:
            all, or those that the run trains on if train and test are the run's own.
        preset: Published settings, which options change: imagenet (the papers' results), imagenet-moco or cifar10.
            Default: imagenet, with the run's own image sizes.
        learning_rates: Base learning rates, for a batch of 256.
        epochs: Passes over the train images.
        batch_size: Images per optimizer step, over all ranks.
        accumulation: Parts into which a rank's batch is split to save memory.
        scaling: The rate used is the base rate times batch / 256 (linear), times its square root (sqrt), or the base
            rate (none).
        schedule: A cosine to 0, or steps at the milestones.
        milestones: Epochs from which on the rate is multiplied by the decay.
        decay: Factor at each milestone.
        warmup_epochs: Epochs of linear warm-up from 0.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty on the weights.
        crop: Train images: resized, a resized crop of 8 to 100 % of the area; padded, a crop of the image in a frame
            of four black pixels; both flipped at random. centre shows them as test images, so that their features are
            computed once.
        size: Side of the train crop and of the test image's centre crop, in pixels.
        resize: Shorter side of a test image before its centre crop, in pixels.
        precision: Precision of the backbone. bfloat16 uses autocast.
        seed: Seed of the heads, the order of the images and the augmentations.
        evaluate_every: Epochs between two tests.
        checkpoint_every: Steps between two checkpoints.
        foreign: Weights from elsewhere.
        device: Device. auto takes a GPU if there is one.
        loader_threads: CPU threads of each rank that decode; by default the rank's share of the cores.
        out: Folder for the results. Default: RUN/evaluations/linear.
        resume: Go on with an evaluation that has begun in the folder.

    Raises:
        FileNotFoundError: a file, folder or checkpoint does not exist.
        ValueError: an option is wrong, labels are missing, or train and test do not fit together.
        Stopped: a signal asked to end; the state is saved, and the exit status is 75.
        RuntimeError: an image cannot be decoded (the message names it), or no head is finite any more.
    """
    chosen, settings = preset_of(
        PRESETS,
        preset or "imagenet",
        learning_rates=learning_rates,
        epochs=epochs,
        batch_size=batch_size,
        accumulation=accumulation,
        scaling=scaling,
        schedule=schedule,
        milestones=milestones,
        decay=decay,
        warmup_epochs=warmup_epochs,
        momentum=momentum,
        weight_decay=weight_decay,
        precision=precision,
        seed=seed,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
    )
    require_room(None if out is None else Path(out), resume=resume)
    threads, target = loader_threads or default_loader_threads(), choose_device(device)
    with process_group(target) as ranks:
        if run is None:
            setup = _of_features(train, test, classes, settings, ranks)
        else:
            view: dict[str, Any] = {"preset": chosen if preset else None, "size": size, "resize": resize}
            task = open_task(run, train, test, classes=classes, network=foreign, **view, threads=threads, ranks=ranks)
            setup = _of_images(task, crop or chosen.crop, settings, ranks=ranks, threads=threads, device=target)
        return evaluated(setup, run, out, device=target, ranks=ranks, resume=resume)


def _of_images(task: Task, crop: Crop, settings: SupervisedSettings, **places: Any) -> Setup:
    """Return the setup for images, or for their features if every epoch shows them alike."""
    network, origin = task.network, {**task.origin, "crop": crop}
    batches: LabelledBatches
    if crop == "centre":
        folder = evaluations_folder(task.source) / FEATURES
        network = network.to(places["device"])
        store = FeatureStore(folder, network, architecture_of(task.description), **places)
        origin["features_by"] = store.weights
        train, test = (
            (store.features(index, task.view, name), torch.as_tensor(index.labels))
            for name, index in (("train", task.train), ("test", task.test))
        )
        batches, network = feature_batches(train, test, settings, places["ranks"]), nn.Identity()
    else:
        batches = image_batches(task.train, task.test, task.view, settings, crop=crop, **places)
    return Setup("linear", network, task.dim, task.classes, batches, settings, origin)


def _of_features(
    train: Path | None, test: Path | None, classes: Path | None, settings: SupervisedSettings, ranks: Ranks
) -> Setup:
    """Return the setup for two feature files."""
    sets = labelled_sets(None, train, test, classes=classes, batch_size=None, device="cpu", ranks=ranks)
    own, other = (sets.train_features, sets.train_labels), (sets.test_features, sets.test_labels)
    with safe_open(str(train), framework="pt") as file:
        names = json.loads(file.metadata()["classes"])
    held = nn.ParameterList([nn.Parameter(tensor, requires_grad=False) for tensor in (*own, *other)])
    origin = {**sets.origin, "features": weights_digest(held)}
    batches = feature_batches(own, other, settings, ranks)
    return Setup("linear", nn.Identity(), own[0].shape[1], names, batches, settings, origin)
