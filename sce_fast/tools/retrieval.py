"""The command evaluate retrieval: the nearest videos of a bank to each query, and the recall of their class."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sce_fast.config import Device, default_loader_threads, to_json
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.distributed import process_group
from sce_fast.evaluate.results import EvaluationResult, require_room
from sce_fast.evaluate.retrieval import RECALL_AT, Retrieval, chance_recall, check_at, retrieve
from sce_fast.export import Foreign
from sce_fast.tools.arguments import (
    ForeignWeights,
    OptionalClasses,
    OptionalFolder,
    OptionalImages,
    OptionalRun,
    PublishedVideos,
)
from sce_fast.tools.chosen_sets import PublishedSplit
from sce_fast.tools.film_strips import SIDE as STRIP_SIDE
from sce_fast.tools.frozen import finish, results_place
from sce_fast.tools.labelled_sets import ImageSets, LabelledSets, labelled_sets
from sce_fast.tools.neighbours import NEIGHBOURS, QUERIES, neighbour_rows, spread
from sce_fast.tools.pictures import SIDE, draw_lines, draw_rows
from sce_fast.train.folder import choose_device
from sce_fast.util.settings import require_none

NAMES = ("bank", "queries")
CLIPS, CROPS = 10, 3  # of each video
BACKBONE, UNTRAINED, CHANCE = "backbone", "untrained network", "chance"  # names of rows
RECALL, NEIGHBOUR_STRIPS = "recall.png", "neighbours.png"


def retrieval(
    run: OptionalRun = None,
    /,
    *,
    bank: OptionalImages = None,
    queries: OptionalImages = None,
    published: PublishedVideos = PublishedSplit(),  # noqa: B008 (frozen)
    classes: OptionalClasses = None,
    recall_at: tuple[int, ...] = RECALL_AT,
    clips: int | None = None,
    crops: int | None = None,
    size: int | None = None,
    frame_rate: float | None = None,
    baselines: bool = False,
    foreign: ForeignWeights = Foreign(),  # noqa: B008 (frozen)
    features: OptionalFolder = None,
    batch_size: int | None = None,
    device: Device = "auto",
    out: OptionalFolder = None,
    resume: bool = False,
) -> EvaluationResult:
    """Retrieve the videos of a bank that are nearest to each query, as the papers do, and print a table of the recall.

    Features are averaged over 10 clips × 3 crops. Bank and queries are centred, each by its own mean, and compared by
    their cosine. R@k is the share of queries with a video of their class among the k nearest. Runs under torchrun,
    where the ranks share the videos. A backbone of images takes the centre crop of each image.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere. Leave it out if bank and queries
            are feature files.
        bank: Class folders, a list file with classes, or a feature file of sce-fast embed; by default the train set
            that the run evaluates.
        queries: Videos to look for, in the same forms; by default the test set that the run evaluates.
        published: A published split of videos: its train part is the bank, its test part the queries.
        classes: Evaluate these classes of both sets: a list file of their names, one a line. Default: all, or those
            that the run trains on if bank and queries are the run's own.
        recall_at: Numbers k, each of which is evaluated. A number above the size of the bank is left out.
        clips: Clips of each video, in equal distances. Default: 10.
        crops: Square crops of each clip: 1 in the centre, or 3 along the longer side. Default: 3.
        size: Shorter side of a frame after resizing, in pixels, and side of its crops. Default: the shorter side that
            the run evaluates, which is 256 for a network of 224.
        frame_rate: Frames per second of folders of extracted frames. Default: those of the run's own videos, or 30.
        baselines: Also evaluate an untrained network of the same architecture.
        foreign: Weights from elsewhere.
        features: Folder in which features are kept and looked for, also those that a stopped evaluation has computed.
            Default: RUN/evaluations/features.
        batch_size: Videos per batch. Default: 16, or fewer if their frames take much memory.
        device: Device of the backbone and of the search. auto takes a GPU if there is one.
        out: Folder for the results. Default: RUN/evaluations/retrieval; with feature files, nothing is written.
        resume: Accept a folder that holds these results already. Features that are kept are not computed again.

    Raises:
        FileNotFoundError: a file, folder or checkpoint does not exist.
        ValueError: an option is wrong, labels are missing, or bank and queries do not fit together.
        Stopped: a signal asked to end while features were computed; finished parts are kept, and the exit status is 75.
        RuntimeError: a video cannot be decoded. The message names it.
    """
    check_at(recall_at)
    run, out = None if run is None else Path(run), None if out is None else Path(out)
    look: dict[str, Any] = {"clips": clips, "crops": crops, "size": size, "frame_rate": frame_rate}
    require_room(out, resume=resume)
    target = choose_device(device)
    with process_group(target) as ranks:
        sets = labelled_sets(
            run,
            bank,
            queries,
            network=foreign,
            published=published,
            classes=classes,
            features=features,
            batch_size=batch_size,
            device=device,
            require=lambda items: _fitting(recall_at, items),
            ranks=ranks,
            view_of=_view,
            look=look,
            names=NAMES,
        )
        fitting = _fitting(recall_at, len(sets.train_labels))
        settings = {**sets.origin, **_counts(sets), "recall_at": list(recall_at), "baselines": baselines}
        if sets.images is not None:
            settings["view"] = to_json(sets.images.view)
        folder = out
        if (source := run or out) is not None:
            folder, _ = results_place(source, out, "retrieval", settings, ranks=ranks, resume=resume)
        _ = sets.features  # computed by all ranks
        untrained = sets.images.untrained() if baselines and sets.images is not None else None
        found: list[Retrieval] = []  # on the first rank

        def rows() -> list[dict[str, Any]]:
            found.append(retrieve(*sets.to(target), at=fitting))
            return _rows(sets, found[0], untrained, target)

        def draw(result: EvaluationResult, folder: Path) -> None:
            draw_recall(result, folder)
            if sets.images is not None:
                draw_neighbours(sets.images, found[0], folder)

        notes = [*sets.notes, *_notes(sets, recall_at, fitting, baselines)]
        result = EvaluationResult("retrieval", settings, ranks.first(rows), notes, _title(sets))
        return finish(result, folder, draw, ranks)


def draw_recall(result: EvaluationResult, folder: Path) -> Path:
    """Draw R@k over k, a line for each row, as recall.png in a folder; return its path."""
    lines = {
        row["features"]: [(int(name.removeprefix("R@")), value) for name, value in row.items() if name != "features"]
        for row in result.rows
    }
    return draw_lines(lines, folder / RECALL, across="k", up="R@k")


def draw_neighbours(images: ImageSets, found: Retrieval, folder: Path) -> Path:
    """Draw some queries, each followed by its nearest videos as film strips, as neighbours.png; return its path."""
    bank, queries = images.indices
    numbers = spread(len(queries), QUERIES[queries.kind])
    chosen, shown = torch.from_numpy(numbers), NEIGHBOURS[queries.kind]
    similarity, nearest = (tensor.cpu()[chosen, :shown] for tensor in (found.similarity, found.nearest))
    threads = default_loader_threads()
    rows = neighbour_rows(queries.subset(numbers), bank, similarity, nearest, images.view, threads=threads)
    side = STRIP_SIDE if queries.kind == "videos" else SIDE
    return draw_rows(rows, folder / NEIGHBOUR_STRIPS, first_apart=True, side=side)


def _rows(
    sets: LabelledSets, found: Retrieval, untrained: list[Tensor] | None, device: torch.device
) -> list[dict[str, Any]]:
    """Return the rows of the table: the backbone, the untrained network if there are its features, and chance."""
    at, recalls = list(found.recall), {BACKBONE: found.recall}
    if untrained is not None:
        recalls[UNTRAINED] = retrieve(*sets.with_features(untrained).to(device), at=at).recall
    recalls[CHANCE] = chance_recall(sets.train_labels, sets.test_labels, at=at)
    return [{"features": name, **{f"R@{k}": value for k, value in recall.items()}} for name, recall in recalls.items()]


def _view(
    own: EvaluationView, *, clips: int | None, crops: int | None, size: int | None, frame_rate: float | None
) -> EvaluationView:
    """Return the view of a backbone with these clips and crops; a crop is as large as the shorter side of a frame.

    Raises:
        ValueError: an option is for clips, but the backbone takes images; or a value is out of range.
    """
    if not isinstance(own, ClipEvaluationView):
        require_none({"clips": clips, "crops": crops, "frame_rate": frame_rate}, "the backbone takes images")
        return own if size is None else dataclasses.replace(own, resize=size, crop=size)
    clips, crops = CLIPS if clips is None else clips, CROPS if crops is None else crops
    size = own.resize if size is None else size
    rate = own.frame_rate if frame_rate is None else frame_rate
    return dataclasses.replace(own, clips=clips, crops=crops, resize=size, crop=size, frame_rate=rate)


def _fitting(recall_at: tuple[int, ...], items: int) -> list[int]:
    """Return the numbers k that the bank allows.

    Raises:
        ValueError: all are too large.
    """
    fitting = [k for k in recall_at if k <= items]
    if not fitting:
        raise ValueError(f"recall_at={recall_at}: expected numbers up to {items}, the size of the bank")
    return fitting


def _notes(sets: LabelledSets, recall_at: tuple[int, ...], fitting: list[int], baselines: bool) -> list[str]:
    notes = []
    if left_out := [f"R@{k}" for k in recall_at if k not in fitting]:
        notes.append(f"{', '.join(left_out)} left out: the bank has only {len(sets.train_labels)} entries")
    if sets.images is None:
        notes.append(f"no {NEIGHBOUR_STRIPS}: the pictures of neighbours need the videos or images themselves")
    if baselines and sets.images is None:
        notes.append("no --baselines: an untrained network needs the videos; feature files hold only features")
    return notes


def _counts(sets: LabelledSets) -> dict[str, int]:
    return {
        "bank_samples": len(sets.train_labels),
        "query_samples": len(sets.test_labels),
        "queries_in_bank": sets.shared,
        "bank_classes": len(sets.train_labels.unique()),
        "dim": sets.dim,
    }


def _title(sets: LabelledSets) -> str:
    counts = _counts(sets)
    kind = "samples" if sets.images is None else sets.images.indices[0].kind
    shared = f" ({sets.shared} of them in the bank)" if sets.shared else ""
    view, views = None if sets.images is None else sets.images.view, ""
    if isinstance(view, ClipEvaluationView):
        views = f" over {view.clips} clips × {view.crops} crop{'s' if view.crops > 1 else ''}"
    return (
        f"retrieval: {counts['bank_samples']} {kind} in the bank, {counts['query_samples']} queries{shared}, "
        f"{counts['bank_classes']} classes, features of {counts['dim']} numbers{views}"
    )
