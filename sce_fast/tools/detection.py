"""The command evaluate detection: what persons do in videos, as in AVA."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from sce_fast.config import Device, default_loader_threads, to_json
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.index import VideoIndex
from sce_fast.distributed import Ranks, process_group
from sce_fast.evaluate.detection.annotations import Persons, read_detections
from sce_fast.evaluate.detection.clips import PersonBatches, key_frame_index
from sce_fast.evaluate.detection.network import PersonFeatures
from sce_fast.evaluate.detection.run import EVALUATION, SETTINGS, detections_result, of_epochs, run_detection
from sce_fast.evaluate.detection.score import average_precisions
from sce_fast.evaluate.detection.training import Score
from sce_fast.evaluate.results import EvaluationResult, require_room
from sce_fast.evaluate.supervised.run import Setup
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.videos import ClipViews, VideoPreset
from sce_fast.export import Backbone, ForeignNetwork, open_backbone
from sce_fast.tools.arguments import ForeignNetworkWeights, OptionalFile, OptionalFolder, OptionalRun
from sce_fast.tools.clip_options import ClipOptions, clip_views
from sce_fast.tools.detection_files import (
    AnnotationFiles,
    Annotations,
    DetectionFiles,
    described_file,
    read_annotations,
)
from sce_fast.tools.frozen import finish
from sce_fast.tools.pictures import draw_bars, draw_lines
from sce_fast.tools.supervised import folder_of
from sce_fast.tools.training_options import Training, TrainingOptions
from sce_fast.train.folder import choose_device
from sce_fast.util.files import printable
from sce_fast.util.terminal import say

ANNOTATED = "The boxes are the annotated ones: there is no file of detected persons (--test-boxes)."
EXTRACTED_RATE = 30.0  # frames per second for which a stride counts frames, as AVA's are extracted


def detection(
    run: OptionalRun = None,
    /,
    *,
    videos: OptionalFolder = None,
    files: AnnotationFiles = DetectionFiles(),  # noqa: B008 (frozen)
    detections: OptionalFile = None,
    start: float = 900.0,
    freeze: bool = False,
    learning_rates: tuple[float, ...] | None = None,
    backbone_learning_rate: float | None = None,
    dropout: float | None = None,
    batch_norm: Literal["sync", "local"] | None = None,
    size: int | None = None,
    resize: int | None = None,
    shorter_side: tuple[int, int] | None = None,
    flip: float | None = None,
    frames: int | None = None,
    seconds: float | None = None,
    frame_rate: float | None = None,
    training: Training = TrainingOptions(),  # noqa: B008 (frozen)
    foreign: ForeignNetworkWeights = ForeignNetwork(),  # noqa: B008 (frozen)
    device: Device = "auto",
    loader_threads: int | None = None,
    out: OptionalFolder = None,
    resume: bool = False,
) -> EvaluationResult:
    """Train a RoI head on a backbone of clips, and the backbone with it, to tell what persons do; print the mAP.

    Files are those of AVA v2.2, or your own in the same form. The network is SlowFast's for AVA: the last stage of an
    R3D dilated, a mean over time, RoIAlign, and a sigmoid for each action. Runs under torchrun.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere; an R3D. Leave it out with
            --detections.
        videos: Folder of the videos, NAME.mp4 (or another ending), or of folders NAME of numbered frames.
        files: Files of annotations.
        detections: CSV of detections (video, second, left, top, right, bottom, action, score) to evaluate instead of
            training, such as the detections.csv of another evaluation.
        start: Second of the annotations at which the videos begin: 900 for videos cut as AVA's, 0 for whole films.
        freeze: Train only the heads.
        learning_rates: Base learning rates of the heads, for a batch of 256; several only with --freeze. Each rate
            trains a head of its own.
        backbone_learning_rate: Base learning rate of the backbone. Default: that of the head.
        dropout: Share of a person's features that a training step sets to 0 before the head.
        batch_norm: Rows that share batch statistics: sync, all ranks' clips; local, a rank's clips.
        size: Side of the train crop in pixels. Default: the backbone's own.
        resize: Shorter side of the frames of a test clip, which is not cropped. Default: the backbone's own.
        shorter_side: Smallest and largest shorter side of the frames that train crops are taken from. Default: resize
            to 5/4 of it.
        flip: Probability of a horizontal flip of train clips. Default: 0.5, but at most the run's.
        frames: Frames of a clip. Default: the backbone's own.
        seconds: Time that a clip covers, with the key frame in its middle. Default: the backbone's own.
        frame_rate: Frames per second of folders of extracted frames. Default: those of the run's own videos, or 30.
        training: How the heads and the backbone are trained. Other epochs than 32 shift the milestones (1/2, 3/4 and
            7/8 of the epochs) and the warm-up (a sixth) in proportion.
        foreign: Weights from elsewhere.
        device: Device. auto takes a GPU if there is one.
        loader_threads: CPU threads of each rank that decode; by default the rank's share of the cores.
        out: Folder for the results. Default: RUN/evaluations/detection; with --detections, nothing is written.
        resume: Go on with an evaluation that has begun in the folder.

    Raises:
        FileNotFoundError: a file, folder or checkpoint does not exist.
        ValueError: an option is wrong, a file is malformed, or key frames lie outside their videos.
        Stopped: a signal asked to end; the state is saved, and the exit status is 75.
        RuntimeError: a video cannot be decoded (the message names it), or no head is finite any more.
    """
    require_room(None if out is None else Path(out), resume=resume)
    annotations = read_annotations(files)
    if detections is not None:
        return _of_detections(run, Path(detections), annotations, out)
    if run is None or videos is None:
        raise ValueError(f"run={run}, videos={videos}: expected both, or --detections FILE alone")
    backbone = open_backbone(Path(run), backbone=foreign)
    options = ClipOptions(frames=frames, seconds=seconds, frame_rate=frame_rate, shorter_side=shorter_side, flip=flip)
    views = _views(Path(run), backbone, options, size=size, resize=resize)
    rates = learning_rates or SETTINGS.learning_rates
    own_rate = rates[0] if backbone_learning_rate is None else backbone_learning_rate
    settings = training.settings(
        dataclasses.replace(of_epochs(training.epochs or SETTINGS.epochs), backbone_learning_rate=None),
        learning_rates=rates,
        backbone_learning_rate=None if freeze else own_rate,
        dropout=dropout,
        batch_norm=batch_norm,
    )
    threads, target = loader_threads or default_loader_threads(), choose_device(device)
    with process_group(target) as ranks:
        if ranks.is_first:
            say(annotations.describe())
        setup = _setup(
            Path(run),
            backbone,
            views,
            settings,
            annotations,
            key_frames={"videos": Path(videos), "start": start, "threads": threads},
            device=target,
            ranks=ranks,
        )
        folder = folder_of(run, out, EVALUATION, setup.described(), ranks=ranks, resume=resume)
        result = run_detection(
            setup, annotations.truth, annotations.actions, folder, device=target, ranks=ranks, resume=resume
        )
        return finish(result, folder, draw_detection, ranks)


def draw_detection(result: EvaluationResult, folder: Path) -> list[Path]:
    """Draw the average precision of each action, the highest first, and the mean over the epochs."""
    best = max(result.rows, key=lambda row: row["mean_average_precision"])
    by_score = sorted(best["average_precisions"].items(), key=lambda item: -item[1])
    pictures = [draw_bars(dict(by_score), folder / "actions.png", along="average precision")]
    if "history" in best:
        lines = {
            f"learning rate {row['learning_rate']:g}": [
                (at["epoch"], at["mean_average_precision"]) for at in row["history"]
            ]
            for row in result.rows
        }
        pictures.append(draw_lines(lines, folder / "map.png", across="epoch", up="mAP"))
    return pictures


def _of_detections(run: Path | None, path: Path, annotations: Annotations, out: Path | None) -> EvaluationResult:
    """Return the result of a file of detections, after it is printed, and written if there is a folder."""
    if run is not None:
        raise ValueError(f"detections={printable(path)} are evaluated alone: leave out {printable(run)}")
    found = read_detections(path, excluded=annotations.test_excluded)
    score = Score(average_precisions(annotations.truth, found, annotations.actions), found)
    settings = {**annotations.origin(), "detections": described_file(path)}
    result = detections_result(annotations.truth, found, annotations.actions, score, settings)
    return finish(result, None if out is None else Path(out), draw_detection, Ranks())


def _views(
    run: Path, backbone: Backbone, options: ClipOptions, *, size: int | None, resize: int | None
) -> tuple[ClipEvaluationView, ClipViews]:
    """Return the view of the test clips, and the views whose augmentation is that of the train clips.

    Raises:
        ValueError: the backbone takes images, or a size is out of range.
    """
    own = backbone.description.view()
    if not isinstance(own, ClipEvaluationView):
        raise ValueError(f"{printable(run)} is a backbone of images; expected one of clips, r3d18 or r3d50")
    preset = VideoPreset(SETTINGS, ClipViews(clips=1, crops=1))
    views = clip_views(run, own, preset, options, named=False, size=size, resize=resize)
    return views.test_view(own), views


def _setup(
    run: Path,
    backbone: Backbone,
    views: tuple[ClipEvaluationView, ClipViews],
    settings: SupervisedSettings,
    annotations: Annotations,
    *,
    key_frames: dict[str, Any],
    device: torch.device,
    ranks: Ranks,
) -> Setup:
    """Return what is trained, and on what."""
    (view, train_views), network = views, PersonFeatures(backbone.network)
    train, test = annotations.train(), annotations.test()
    sampling = view.sampling
    covered = sampling.seconds
    if covered is None:
        assert sampling.stride is not None
        covered = sampling.stride * sampling.frames / EXTRACTED_RATE
    places = {**key_frames, "seconds": covered, "frame_rate": view.frame_rate}
    indices = [ranks.first_then_others(partial(_readable, persons, places)) for persons in (train, test)]
    augmentation = train_views.augmentation(view)
    batches = PersonBatches(
        train,
        indices[0],
        test,
        indices[1],
        view,
        settings,
        augmentation=augmentation,
        device=device,
        ranks=ranks,
        threads=places["threads"],
    )
    origin = {
        "source": str(run),
        "backbone": to_json(backbone.description),
        "view": to_json(view),
        "augmentation": to_json(augmentation),
        **annotations.origin(),
        "videos": str(places["videos"]),
        "start": places["start"],
        "seconds": covered,
    }
    for name, persons, index in (("train", train, indices[0]), ("test", test, indices[1])):
        origin[name] = {"persons": len(persons), "key_frames": len(index), "fingerprint": index.fingerprint}
    classes = [annotations.actions.get(a, f"action {a}") for a in range(1, train.actions.shape[1] + 1)]
    notes = () if "test_boxes" in annotations.files else (ANNOTATED,)
    return Setup(EVALUATION, network, network.dim, classes, batches, settings, origin, notes)


def _readable(persons: Persons, places: dict[str, Any]) -> VideoIndex:
    index = key_frame_index(persons, **places)
    index.require_readable()
    return index
