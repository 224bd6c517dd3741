"""The command evaluate linear: the papers' linear classifiers on a frozen backbone of images or clips."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn

from sce_fast.config import Device, default_loader_threads
from sce_fast.data.index import ImageIndex
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.distributed import Ranks, process_group
from sce_fast.evaluate.linear import PRESETS, VIDEO_PRESETS
from sce_fast.evaluate.results import EvaluationResult, evaluations_folder, require_room
from sce_fast.evaluate.store import FeatureStore, weights_digest
from sce_fast.evaluate.supervised.batches import StoredBatches, stored_order
from sce_fast.evaluate.supervised.images import feature_batches, image_batches
from sce_fast.evaluate.supervised.run import Setup
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.export import Backbone, ForeignNetwork, open_backbone
from sce_fast.tools.arguments import (
    ForeignNetworkWeights,
    OptionalClasses,
    OptionalFolder,
    OptionalImages,
    OptionalRun,
    PublishedVideos,
)
from sce_fast.tools.chosen_sets import ChosenSets, PublishedSplit, chosen_sets
from sce_fast.tools.clip_options import ClipOptions, TrainingClips, clip_views, video_setup
from sce_fast.tools.frozen import FEATURES, architecture_of
from sce_fast.tools.labelled_sets import labelled_sets
from sce_fast.tools.supervised import Task, evaluated, image_view, open_task
from sce_fast.tools.training_options import Training, TrainingOptions
from sce_fast.train.folder import choose_device
from sce_fast.util.files import printable
from sce_fast.util.names import pick

Name = Literal[
    "imagenet", "imagenet-moco", "cifar10",
    "kinetics400", "kinetics200", "kinetics400-small", "kinetics200-small",
]  # fmt: skip
SettingsOf = Callable[[SupervisedSettings], SupervisedSettings]  # a preset's with the given options
AnyCrop = Literal["resized", "padded", "scaled", "centre"]


def linear(
    run: OptionalRun = None,
    /,
    *,
    train: OptionalImages = None,
    test: OptionalImages = None,
    published: PublishedVideos = PublishedSplit(),  # noqa: B008 (frozen)
    classes: OptionalClasses = None,
    preset: Name | None = None,
    learning_rates: tuple[float, ...] | None = None,
    crop: AnyCrop | None = None,
    size: int | None = None,
    resize: int | None = None,
    clips: TrainingClips = ClipOptions(),  # noqa: B008 (frozen)
    training: Training = TrainingOptions(),  # noqa: B008 (frozen)
    foreign: ForeignNetworkWeights = ForeignNetwork(),  # noqa: B008 (frozen)
    device: Device = "auto",
    loader_threads: int | None = None,
    out: OptionalFolder = None,
    resume: bool = False,
) -> EvaluationResult:
    """Train linear classifiers on a frozen backbone by SGD on augmented images or clips, as the papers do.

    Prints a table. Several learning rates are trained at once: each has a head of its own on the same features. Runs
    under torchrun.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere. Leave it out if train and test
            are feature files.
        train: Class folders, a list file with classes, or a feature file of sce-fast embed; by default the run's own.
        test: Images or videos to classify, in the same forms; by default the run's own.
        published: A published split of videos.
        classes: Evaluate these classes of both sets: a list file of their names, one a line, or imagenet100. Default:
            all, or those that the run trains on if train and test are the run's own.
        preset: Published settings, which options change: imagenet (the papers' results), imagenet-moco or cifar10;
            for videos kinetics400 or kinetics200, or -small for clips of 16 frames of 112 pixels. Default: imagenet or
            kinetics400, with the run's own sizes.
        learning_rates: Base learning rates, for a batch of 256.
        crop: Train images: resized, a resized crop of 8 to 100 % of the area; padded, a crop of the image in a frame
            of four black pixels. Clips: scaled, a crop of frames whose shorter side is random (default); or resized.
            All are flipped at random. centre shows samples as in a test, so that features are computed once.
        size: Side of the train crop, and of a test image's centre crop, in pixels.
        resize: Shorter side of a test image, or of a test video's frames, in pixels.
        clips: How clips look.
        training: How the classifiers are trained.
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
    require_room(None if out is None else Path(out), resume=resume)
    places: dict[str, Any] = {"threads": loader_threads or default_loader_threads(), "device": choose_device(device)}
    settings_of = partial(training.settings, learning_rates=learning_rates)
    look: dict[str, Any] = {"crop": crop, "size": size, "resize": resize}
    with process_group(places["device"]) as ranks:
        places["ranks"] = ranks
        if run is None:
            every = {name: some.settings for name, some in PRESETS.items()}
            every |= {name: some.settings for name, some in VIDEO_PRESETS.items()}
            settings = settings_of(pick("preset", preset or "imagenet", every))
            clips.require_none("without a run, train and test are feature files", **look)
            setup = _of_features(train, test, classes, published, settings, ranks)
        else:
            run = Path(run)
            backbone = open_backbone(run, backbone=foreign)
            sets = chosen_sets(run, train, test, classes, published=published)
            prepare = _of_clips if isinstance(backbone.description.view(), ClipEvaluationView) else _of_images
            setup = prepare(run, backbone, sets, settings_of, places, preset=preset, clips=clips, **look)
        return evaluated(setup, run, out, device=places["device"], ranks=ranks, resume=resume)


def _of_images(
    run: Path,
    backbone: Backbone,
    sets: ChosenSets,
    settings_of: SettingsOf,
    places: dict[str, Any],
    *,
    preset: str | None,
    crop: AnyCrop | None,
    size: int | None,
    resize: int | None,
    clips: ClipOptions,
) -> Setup:
    """Return the setup for images, or for their features if every epoch shows them alike.

    Raises:
        ValueError: a preset, crop or option is for clips.
    """
    clips.require_none(f"{printable(run)} is a backbone of images")
    chosen = pick("preset for images", preset or "imagenet", PRESETS)
    if crop == "scaled":
        raise ValueError(f"crop='scaled': expected resized, padded or centre, as {printable(run)} takes images")
    shown, settings = crop or chosen.crop, settings_of(chosen.settings)
    view = image_view(run, backbone.description, preset=chosen if preset else None, size=size, resize=resize)
    task = open_task(run, backbone, view, sets, threads=places["threads"], ranks=places["ranks"])
    if shown == "centre":
        return _of_stored(task, settings, places)
    assert isinstance(task.train, ImageIndex)
    assert isinstance(task.test, ImageIndex)
    batches = image_batches(task.train, task.test, task.view, settings, crop=shown, **places)
    return task.setup("linear", batches, settings, crop=shown)


def _of_clips(
    run: Path,
    backbone: Backbone,
    sets: ChosenSets,
    settings_of: SettingsOf,
    places: dict[str, Any],
    *,
    preset: str | None,
    crop: AnyCrop | None,
    size: int | None,
    resize: int | None,
    clips: ClipOptions,
) -> Setup:
    """Return the setup for videos, or for their features if every epoch shows them alike.

    Raises:
        ValueError: a preset or crop is for images.
    """
    chosen = pick("preset for videos", preset or "kinetics400", VIDEO_PRESETS)
    settings = settings_of(chosen.settings)
    if crop == "padded":
        raise ValueError(f"crop='padded': expected scaled, resized or centre, as {printable(run)} takes clips")
    own = backbone.description.view()
    assert isinstance(own, ClipEvaluationView)
    sizes: dict[str, Any] = {"size": size, "resize": resize}
    shown = None if crop == "centre" else crop
    views = clip_views(run, own, chosen, clips, named=preset is not None, crop=shown, **sizes)
    view = views.test_view(own)
    task = open_task(run, backbone, view, sets, threads=places["threads"], ranks=places["ranks"])
    if crop == "centre":
        return _of_stored(task, settings, places)
    return video_setup("linear", task, view, views, settings, places)


def _of_stored(task: Task, settings: SupervisedSettings, places: dict[str, Any]) -> Setup:
    """Return the setup for features that are computed once and kept, of videos their means over clips and crops."""
    folder = evaluations_folder(task.source) / FEATURES
    network = task.network.to(places["device"])
    store = FeatureStore(folder, network, architecture_of(task.description), **places)
    stored_order(len(task.train), settings, places["ranks"])  # complains before features are computed

    def batches() -> StoredBatches:
        train, test = (
            (store.features(index, task.view, name), torch.as_tensor(index.labels))
            for name, index in (("train", task.train), ("test", task.test))
        )
        return feature_batches(train, test, settings, places["ranks"], kind=task.train.kind)

    origin = {**task.origin, "crop": "centre", "features_by": store.weights}
    return Setup("linear", nn.Identity(), task.dim, task.classes, batches, settings, origin, task.notes)


def _of_features(
    train: Path | None,
    test: Path | None,
    classes: Path | None,
    published: PublishedSplit,
    settings: SupervisedSettings,
    ranks: Ranks,
) -> Setup:
    """Return the setup for two feature files."""
    sets = labelled_sets(
        None, train, test, classes=classes, published=published, batch_size=None, device="cpu", ranks=ranks
    )
    own, other = (sets.train_features, sets.train_labels), (sets.test_features, sets.test_labels)
    with safe_open(str(train), framework="pt") as file:
        names = json.loads(file.metadata()["classes"])
    held = nn.ParameterList([nn.Parameter(tensor, requires_grad=False) for tensor in (*own, *other)])
    origin = {**sets.origin, "features": weights_digest(held)}
    batches = feature_batches(own, other, settings, ranks)
    return Setup("linear", nn.Identity(), own[0].shape[1], names, batches, settings, origin)
