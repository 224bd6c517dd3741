"""The command evaluate detection: what persons do in videos, as in AVA."""

import dataclasses
from pathlib import Path
from typing import Literal

from sce_fast.config import Device, default_loader_threads
from sce_fast.distributed import Ranks, process_group
from sce_fast.evaluate.detection.annotations import read_detections
from sce_fast.evaluate.detection.run import EVALUATION, SETTINGS, detections_result, of_epochs, run_detection
from sce_fast.evaluate.detection.score import average_precisions
from sce_fast.evaluate.detection.training import Score
from sce_fast.evaluate.results import EvaluationResult, require_room
from sce_fast.export import ForeignNetwork
from sce_fast.tools.arguments import ForeignNetworkWeights, OptionalFile, OptionalFolder, OptionalRun
from sce_fast.tools.clip_options import ClipOptions
from sce_fast.tools.detection_files import (
    AnnotationFiles,
    Annotations,
    DetectionFiles,
    described_file,
    read_annotations,
)
from sce_fast.tools.detection_setup import setup_of
from sce_fast.tools.detection_source import Crop, KeptFeatures, PersonFeatureOptions, PersonSource
from sce_fast.tools.frozen import finish
from sce_fast.tools.pictures import draw_bars, draw_lines
from sce_fast.tools.supervised import folder_of
from sce_fast.tools.training_options import Training, TrainingOptions
from sce_fast.train.folder import choose_device
from sce_fast.util.files import printable
from sce_fast.util.settings import require_none
from sce_fast.util.terminal import say


def detection(
    run: OptionalRun = None,
    /,
    *,
    videos: OptionalFolder = None,
    files: AnnotationFiles = DetectionFiles(),  # noqa: B008 (frozen)
    detections: OptionalFile = None,
    first_second: float | None = None,
    freeze: bool = False,
    crop: Crop | None = None,
    kept: KeptFeatures = PersonFeatureOptions(),  # noqa: B008 (frozen)
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
            --detections, or with both --train-features and --test-features.
        videos: Folder of the videos, NAME.mp4 (or another ending), or of folders NAME of numbered frames. Leave it out
            with both --train-features and --test-features.
        files: Files of annotations.
        detections: CSV of detections (video, second, left, top, right, bottom, action, score) to evaluate instead of
            training, such as the detections.csv of another evaluation. Goes only with the files of annotations.
        first_second: Second of the annotations at which the videos begin: 900 for videos cut as AVA's (default), 0 for
            whole films.
        freeze: Train only the heads. The features of the test persons are computed once and kept.
        crop: Train clips: scaled, a crop of frames whose shorter side is random, flipped at random (default); or, only
            with --freeze, centre, whole frames as in a test, so that their features are computed once.
        kept: Features of persons that a frozen backbone has computed.
        learning_rates: Base learning rates of the heads, for a batch of 256; several only with --freeze. Each rate
            trains a head of its own.
        backbone_learning_rate: Base learning rate of the backbone, if it is trained. Default: that of the head.
        dropout: Share of a person's features that a training step sets to 0 before the head.
        batch_norm: Rows that share the batch statistics of a trained backbone: sync, all ranks' clips; local, a rank's
            clips.
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
        out: Folder for the results. Default: RUN/evaluations/detection; with --detections, nothing is written. Needed
            without a run.
        resume: Go on with an evaluation that has begun in the folder.

    Raises:
        FileNotFoundError: a file, folder or checkpoint does not exist.
        ValueError: an option is wrong, a file is malformed, key frames lie outside their videos, or a feature file is
            of another backbone or lacks a box.
        Stopped: a signal asked to end; the state is saved, and the exit status is 75.
        RuntimeError: a video cannot be decoded (the message names it), or no head is finite any more.
    """
    require_room(None if out is None else Path(out), resume=resume)
    source = PersonSource(
        run=None if run is None else Path(run),
        foreign=foreign,
        videos=None if videos is None else Path(videos),
        first_second=first_second,
        freeze=freeze,
        crop=crop,
        kept=kept,
        clips=ClipOptions(frames=frames, seconds=seconds, frame_rate=frame_rate, shorter_side=shorter_side, flip=flip),
        size=size,
        resize=resize,
    )
    more = {"backbone_learning_rate": backbone_learning_rate, "batch_norm": batch_norm}
    if detections is not None:
        others = {"learning_rates": learning_rates, "dropout": dropout, **vars(training)}
        require_none(source.given() | more | others, f"{printable(detections)} is evaluated alone (--detections)")
        return _of_detections(Path(detections), read_annotations(files), out)
    source.check(None if out is None else Path(out), **more)
    annotations = read_annotations(files)
    rates = learning_rates or SETTINGS.learning_rates
    own_rate = rates[0] if backbone_learning_rate is None else backbone_learning_rate
    settings = training.settings(
        dataclasses.replace(of_epochs(training.epochs or SETTINGS.epochs), backbone_learning_rate=None),
        learning_rates=rates,
        backbone_learning_rate=None if source.frozen else own_rate,
        dropout=dropout,
        batch_norm=batch_norm,
    )
    threads, target = loader_threads or default_loader_threads(), choose_device(device)
    with process_group(target) as ranks:
        if ranks.is_first:
            say(annotations.describe())
        setup = setup_of(source, settings, annotations, threads=threads, device=target, ranks=ranks)
        folder = folder_of(source.run, out, EVALUATION, setup.described(), ranks=ranks, resume=resume)
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


def _of_detections(path: Path, annotations: Annotations, out: Path | None) -> EvaluationResult:
    """Return the result of a file of detections, after it is printed, and written if there is a folder."""
    found = read_detections(path, excluded=annotations.test_excluded)
    score = Score(average_precisions(annotations.truth, found, annotations.actions), found)
    settings = {**annotations.origin(), "detections": described_file(path)}
    result = detections_result(annotations.truth, found, annotations.actions, score, settings)
    return finish(result, None if out is None else Path(out), draw_detection, Ranks())
