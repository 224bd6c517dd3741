"""The command evaluate transfer: logistic regression on frozen features of up to eleven data sets."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sce_fast.config import Device, to_json
from sce_fast.data.image.augment import EvaluationView
from sce_fast.distributed import Ranks, process_group
from sce_fast.evaluate.results import EvaluationResult, require_room
from sce_fast.evaluate.sets import (
    SETS,
    ImageSet,
    describe_left_out,
    find_sets,
    listed_images,
    open_set,
    require_left_out,
)
from sce_fast.evaluate.transfer import (
    DECAYS,
    ITERATIONS,
    Metric,
    TransferSet,
    check_search,
    random_validation,
    transfer_score,
)
from sce_fast.export import ForeignNetwork
from sce_fast.tools.arguments import ForeignNetworkWeights, OptionalFile, OptionalFolder, Run
from sce_fast.tools.frozen import Frozen, finish, open_frozen, results_place
from sce_fast.tools.pictures import draw_bars, draw_lines
from sce_fast.train.folder import choose_device
from sce_fast.util.terminal import progress_bar

Interpolation = Literal["bicubic", "bilinear"]


def transfer(
    run: Run,
    /,
    *,
    data: OptionalFolder = None,
    sets: tuple[str, ...] = (),
    weight_decays: tuple[float, ...] | None = None,
    max_iterations: int = ITERATIONS,
    skip_difficult: bool = False,
    leave_out: OptionalFile = None,
    seed: int = 0,
    crop: int | None = None,
    resize: int | None = None,
    interpolation: Interpolation = "bicubic",
    features: OptionalFolder = None,
    batch_size: int | None = None,
    foreign: ForeignNetworkWeights = ForeignNetwork(),  # noqa: B008 (frozen)
    device: Device = "auto",
    out: OptionalFolder = None,
    resume: bool = False,
) -> EvaluationResult:
    """Classify images of other data sets by logistic regression on frozen features, as the papers do; print a table.

    Known data sets are read as they are downloaded: food101, cifar10, cifar100, sun397, cars, aircraft, voc2007, dtd,
    pets, caltech101 and flowers. Any other name stands for your own images: class folders train/, test/ and, if there
    is one, val/; STL-10 as downloaded; or tar shards or Parquet tables of such splits. The weight decay is chosen on
    the validation images, without them on a random fifth of the train images, and train and validation images are
    fitted again. Runs under torchrun.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere.
        data: Folder that holds data sets under their usual names, such as food-101 or VOCdevkit; all are evaluated.
        sets: Further data sets as NAME=FOLDER.
        weight_decays: Weight decays to choose from. Default: 45 from 1e-6 to 1e5, in equal ratios.
        max_iterations: Largest number of L-BFGS iterations for each weight decay.
        skip_difficult: Leave out images of VOC that are marked as difficult for a class, as the challenge does. By
            default they count as images without the class.
        leave_out: List of images to leave out, one path a line, such as files of a published set that do not decode.
            A tab and a reason may follow, as in the list that sce-fast scan --out writes. They are named below the
            table.
        seed: Seed of the random fifth, and of the train images of caltech101.
        crop: Side of the centre crop in pixels. Default: the backbone's own.
        resize: Shorter side in pixels before the crop. Default: as long as the crop, as published.
        interpolation: How images are resized. Published is bicubic.
        features: Folder in which features are kept and looked for, also those that a stopped evaluation has computed.
            Default: RUN/evaluations/features.
        batch_size: Images per batch and rank. Default: 256.
        foreign: Weights from elsewhere.
        device: Device of the backbone and of the regression. auto takes a GPU if there is one.
        out: Folder for the results. Default: RUN/evaluations/transfer.
        resume: Continue an evaluation with the same settings. Finished data sets are not computed again.

    Raises:
        FileNotFoundError: a folder, a list of a data set or a checkpoint does not exist.
        ValueError: an option is wrong, or images are missing; the message counts and names them.
        Stopped: a signal asked to end while features were computed; finished parts are kept, and the exit status is 75.
        RuntimeError: an image cannot be decoded. The message names it.
    """
    decays = DECAYS if weight_decays is None else weight_decays
    check_search(decays, max_iterations)
    folders, out = named_folders(data, sets), None if out is None else Path(out)
    require_room(out, resume=resume)
    target = choose_device(device)
    with process_group(target) as ranks:
        listed = listed_images(leave_out)
        opened = {name: open_set(name, folder, seed=seed, leave_out=listed) for name, folder in folders.items()}
        require_left_out(leave_out, {name: images for name, (images, _) in opened.items()})
        frozen = open_frozen(
            Path(run), network=foreign, features=features, batch_size=batch_size, device=target, ranks=ranks
        )
        view = frozen.image_view(resize=resize, crop=crop, interpolation=interpolation)
        settings = {
            **frozen.origin(),
            "view": to_json(view),
            "weight_decays": list(decays),
            "max_iterations": max_iterations,
            "skip_difficult": skip_difficult,
            "seed": seed,
        }
        place, rows = results_place(Path(run), out, "transfer", settings, ranks=ranks, resume=resume)
        jobs = [
            Job(name, folders[name], images, metric, digest)
            for name, (images, metric) in opened.items()
            for digest in [ranks.first(images.contents)]
            if not any(row["data"] == name and row["files"]["digest"] == digest for row in rows)
        ]
        search = {"decays": decays, "max_iterations": max_iterations, "device": target}
        for start in range(0, len(jobs), ranks.size):  # each rank fits a data set of its own
            group = jobs[start : start + ranks.size]
            found = _scores(group, frozen, view, search, skip_difficult=skip_difficult, seed=seed, ranks=ranks)
            rows = [row for row in rows if row["data"] not in {new["data"] for new in found}] + found
            rows.sort(key=lambda row: _order(row["data"]))
            result = _result(settings, rows)
            ranks.first(lambda: result.write(place))  # noqa: B023 (called at once)
        return finish(_result(settings, rows), place, draw_transfer, ranks)


@dataclasses.dataclass(frozen=True)
class Job:
    """A data set to evaluate."""

    name: str
    folder: Path
    images: ImageSet
    metric: Metric
    digest: str  # ImageSet.contents


def named_folders(data: Path | None, sets: tuple[str, ...]) -> dict[str, Path]:
    """Return name → folder of the data sets that the user names.

    Raises:
        FileNotFoundError: as find_sets.
        ValueError: nothing is named, or an entry is not NAME=FOLDER.

    Example:
        >>> named_folders(None, ("pets=data/pets",))
        {'pets': PosixPath('data/pets')}
    """
    folders = {} if data is None else find_sets(Path(data))
    for entry in sets:
        name, equals, folder = entry.partition("=")
        if not equals or not folder or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"sets={entry}: expected NAME=FOLDER, with a known name ({', '.join(SETS)}) or your own")
        folders[name] = Path(folder)
    if not folders:
        raise ValueError("no data sets: name them by --sets NAME=FOLDER, or a folder that holds them by --data")
    return folders


def draw_transfer(result: EvaluationResult, folder: Path) -> list[Path]:
    """Draw the score of each data set, and its score on the validation images over the weight decay."""
    scores = {f"{row['data']} ({row['metric']})": row["score"] for row in result.rows}
    curves = {
        row["data"]: [(math.log10(decay), score) for decay, score in row["validation_scores"]] for row in result.rows
    }
    return [
        draw_bars(scores, folder / "scores.png", along="score"),
        draw_lines(curves, folder / "validation.png", across="log10 of the weight decay", up="score on validation"),
    ]


def _scores(
    group: list[Job],
    frozen: Frozen,
    view: EvaluationView,
    search: dict[str, Any],
    *,
    skip_difficult: bool,
    seed: int,
    ranks: Ranks,
) -> list[dict[str, Any]]:
    """Return a row for each data set of a group, at most one for each rank. All compute the features together."""
    mine: TransferSet | None = None
    for i, job in enumerate(group):
        features = frozen.features_of(job.images, view, job.name)
        if i == ranks.rank:
            mine = transfer_set(job.images, features, skip_difficult=skip_difficult, seed=seed)
    row = None if mine is None else _row(group[ranks.rank], mine, search, silent=not ranks.is_first)
    return [row for row in ranks.gather(row) if row is not None]


def transfer_set(images: ImageSet, features: torch.Tensor, *, skip_difficult: bool, seed: int) -> TransferSet:
    """Return features with labels and parts; without validation images, a random fifth of the train images."""
    labels, train, validation = images.labels, images.rows("train"), images.rows("validation")
    if not len(validation):
        train, validation = random_validation(train, seed)
    if labels.ndim == 2 and not skip_difficult:
        labels = np.where(labels == 0, -1, labels)
    return TransferSet(features, torch.from_numpy(labels), train, validation, images.rows("test"))


def _row(job: Job, data: TransferSet, search: dict[str, Any], *, silent: bool) -> dict[str, Any]:
    with progress_bar(len(search["decays"]) + 1, f"Fits of {job.name}", unit="fit", silent=silent) as bar:
        found = transfer_score(data, job.metric, progress=bar.update, **search)
    return {
        "data": job.name,
        "metric": job.metric,
        "score": found.score,
        "top1": found.top1,
        "mean_per_class": found.mean_per_class,
        "weight_decay": found.weight_decay,
        "at_edge": found.at_edge,
        "converged": found.converged,
        "train": len(data.train),
        "validation": len(data.validation),
        "test": len(data.test),
        "left_out": list(job.images.left_out),
        "classes": job.images.classes,
        "validation_scores": [list(item) for item in found.validation.items()],
        "files": {"folder": str(job.folder), "digest": job.digest},
    }


def _result(settings: dict[str, Any], rows: list[dict[str, Any]]) -> EvaluationResult:
    notes = []
    if len(rows) > 1:
        notes.append(f"mean score of {len(rows)} data sets: {np.mean([row['score'] for row in rows]):.4f}")
    if edges := [row["data"] for row in rows if row["at_edge"]]:
        notes.append(f"Warning: the best weight decay is the smallest or largest that was tried for {', '.join(edges)}")
    for row in rows:
        notes += describe_left_out(row["data"], row.get("left_out", []))  # rows of earlier versions have none
    view = settings["view"]
    title = (
        f"logistic regression on frozen features; images resized to {view['resize']} pixels ({view['interpolation']}), "
        f"centre crop of {view['crop']}"
    )
    return EvaluationResult("transfer", settings, rows, notes, title)


def _order(name: str) -> tuple[int, str]:
    """Return a key that sorts data sets as the papers' table does, others behind them."""
    return (list(SETS).index(name) if name in SETS else len(SETS)), name
