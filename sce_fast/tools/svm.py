"""The command evaluate svm: one-vs-all linear SVMs on frozen features, on all and on few images of each class."""

from pathlib import Path
from typing import Any

import numpy as np

from sce_fast.config import Device, to_json
from sce_fast.distributed import process_group
from sce_fast.evaluate.results import EvaluationResult, require_room
from sce_fast.evaluate.sets import ImageSet, describe_left_out, listed_images, open_set, require_left_out
from sce_fast.evaluate.svm import COST, DRAWS, SHOTS, SVMEvaluation, SVMResult, check_svm, one_vs_all
from sce_fast.export import ForeignNetwork
from sce_fast.tools.arguments import ForeignNetworkWeights, Images, OptionalFile, OptionalFolder, Run
from sce_fast.tools.frozen import finish, open_frozen, results_place
from sce_fast.tools.pictures import draw_bars
from sce_fast.tools.transfer import Interpolation
from sce_fast.train.folder import choose_device
from sce_fast.util.terminal import progress_bar


def svm(
    run: Run,
    data: Images,
    /,
    *,
    name: str = "voc2007",
    shots: tuple[int, ...] = SHOTS,
    draws: int = DRAWS,
    full: bool = True,
    cost: float = COST,
    skip_difficult: bool = False,
    leave_out: OptionalFile = None,
    seed: int = 0,
    crop: int | None = None,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    features: OptionalFolder = None,
    batch_size: int | None = None,
    foreign: ForeignNetworkWeights = ForeignNetwork(),  # noqa: B008 (frozen)
    device: Device = "auto",
    out: OptionalFolder = None,
    resume: bool = False,
) -> EvaluationResult:
    """Classify VOC2007 by linear SVMs on frozen features, with few and with all train images; print a table of the mAP.

    Each class has an SVM of its own (squared hinge loss, positives weighted twice) on L2-normalised features. Train and
    validation images are learned from. Runs under torchrun.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere.
        data: VOCdevkit, or the folder of another data set.
        name: Another data set of evaluate transfer, or any other name for your own images, as evaluate transfer reads
            them.
        shots: Numbers of train images of each class.
        draws: Random draws of these images, over which the mAP is averaged.
        full: Also learn from all train images.
        cost: Inverse strength C of the penalty.
        skip_difficult: Leave out images that are marked as difficult for a class, as the challenge does. By default
            they count as images without the class, as in the published script.
        leave_out: List of images to leave out; see transfer.
        seed: Seed of the draws.
        crop: Side of the centre crop in pixels. Default: the backbone's own.
        resize: Shorter side in pixels before the crop. Default: 8/7 of the crop, 256 for 224.
        interpolation: How images are resized.
        features: Folder in which features are kept and looked for, also those that a stopped evaluation has computed.
            Default: RUN/evaluations/features.
        batch_size: Images per batch and rank. Default: 256.
        foreign: Weights from elsewhere.
        device: Device of the backbone. auto takes a GPU if there is one. The SVMs run on the CPU.
        out: Folder for the results. Default: RUN/evaluations/svm.
        resume: Continue an evaluation with the same settings. Finished numbers of images are not computed again.

    Raises:
        FileNotFoundError, ValueError, Stopped, RuntimeError: see transfer.
    """
    check_svm(cost, shots, draws)
    wanted: list[int | None] = [*dict.fromkeys(shots), *([None] if full else [])]
    if not wanted:
        raise ValueError("nothing to learn from: give --shots, or leave out --no-full")
    run, out = Path(run), None if out is None else Path(out)
    require_room(out, resume=resume)
    target = choose_device(device)
    with process_group(target) as ranks:
        images, _ = open_set(name, Path(data), seed=seed, leave_out=listed_images(leave_out))
        require_left_out(leave_out, {name: images})
        frozen = open_frozen(run, network=foreign, features=features, batch_size=batch_size, device=target, ranks=ranks)
        side = frozen.description.crop if crop is None else crop
        resize = round(side * 8 / 7) if resize is None else resize
        view = frozen.image_view(resize=resize, crop=side, interpolation=interpolation)
        data_settings = {
            "name": name,
            "folder": str(data),
            **images.counts(),
            "classes": images.classes,
            **({"left_out": list(images.left_out)} if images.left_out else {}),
            "contents": ranks.first(images.contents),
        }
        settings = {
            **frozen.origin(),
            "view": to_json(view),
            "data": data_settings,
            "draws": draws,
            "cost": cost,
            "skip_difficult": skip_difficult,
            "seed": seed,
        }
        place, rows = results_place(run, out, "svm", settings, ranks=ranks, resume=resume)
        missing = [k for k in wanted if _label(k) not in {row["images_per_class"] for row in rows}]
        if missing:
            rows_of = np.concatenate([images.rows("train"), images.rows("validation")]), images.rows("test")
            labels = labels_of(images, skip_difficult=skip_difficult)
            inputs = frozen.features_of(images, view, name), labels, *rows_of
            evaluation = SVMEvaluation(*inputs, cost=cost, seed=seed, ranks=ranks)
            for k in missing:
                fits = len(images.classes) * (1 if k is None else draws)
                with progress_bar(fits, f"SVMs, {_label(k)} images", unit="fit", silent=not ranks.is_first) as bar:
                    rows = sorted([*rows, _row(evaluation.score(k, draws, progress=bar.update))], key=_order)
                result = _result(settings, rows)
                ranks.first(lambda: result.write(place))  # noqa: B023 (called at once)
        return finish(_result(settings, rows), place, draw_svm, ranks)


def draw_svm(result: EvaluationResult, folder: Path) -> Path:
    """Draw the mAP for each number of images, with its standard deviation."""
    names = [f"{k} a class" if (k := row["images_per_class"]) != "all" else "all images" for row in result.rows]
    values = {name: row["mAP"] for name, row in zip(names, result.rows, strict=True)}
    errors = {name: row["std"] for name, row in zip(names, result.rows, strict=True)}
    return draw_bars(values, folder / "mAP.png", along="mAP", errors=errors)


def labels_of(images: ImageSet, *, skip_difficult: bool) -> Any:
    """Return labels (n, C) of 1, -1 and, if difficult images are left out, 0."""
    labels = one_vs_all(images.labels) if images.labels.ndim == 1 else images.labels
    return labels if skip_difficult else np.where(labels == 0, -1, labels)


def _row(found: SVMResult) -> dict[str, Any]:
    return {
        "images_per_class": _label(found.shots),
        "mAP": found.mean,
        "std": found.std,
        "draws": len(found.draws),
        "mAP_of_draws": found.draws,
    }


def _label(shots: int | None) -> str:
    return "all" if shots is None else str(shots)


def _order(row: dict[str, Any]) -> float:
    return float("inf") if row["images_per_class"] == "all" else int(row["images_per_class"])


def _result(settings: dict[str, Any], rows: list[dict[str, Any]]) -> EvaluationResult:
    data = settings["data"]
    trained = data.get("train", 0) + data.get("validation", 0)
    title = (
        f"linear SVMs on frozen features of {data['name']}, {trained} train and {data.get('test', 0)} test images, "
        f"{len(data['classes'])} classes; mean and standard deviation over draws"
    )
    return EvaluationResult("svm", settings, rows, describe_left_out(data["name"], data.get("left_out", [])), title)
