"""Labelled images as batches: randomly cropped and flipped, or as features that are computed once."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import ImageIndex
from sce_fast.distributed import Ranks
from sce_fast.evaluate.supervised.batches import LoadedBatches, StoredBatches
from sce_fast.evaluate.supervised.settings import SupervisedSettings

Crop = Literal["resized", "padded", "centre"]
SCALE = (0.08, 1.0)  # of the resized crop: its area as a share of the image's
PADDING = 4  # pixels of the padded crop


@dataclass(frozen=True)
class Preset:
    """A published protocol: the training, and how train and test images are cropped."""

    settings: SupervisedSettings
    crop: Crop
    size: int  # side of the train view and of the test view's centre crop
    resize: int  # shorter side of a test image before its centre crop


def train_view(crop: Crop, view: EvaluationView) -> Augmentation:
    """Return the random view of a train image, at the size and with the normalisation of the test view.

    Args:
        crop: "resized" for a resized crop of 8 to 100 % of the area, "padded" for a crop of the image with a border of
            four black pixels; both are flipped at random.
        view: of the test images.
    """
    settings: dict[str, Any] = {"size": view.crop, "mean": view.mean, "std": view.std}
    return Augmentation(**settings, **({"scale": SCALE} if crop == "resized" else {"padding": PADDING}))


def image_batches(
    train: ImageIndex,
    test: ImageIndex,
    view: EvaluationView,
    settings: SupervisedSettings,
    *,
    crop: Crop,
    device: torch.device,
    ranks: Ranks | None = None,
    threads: int = 2,
) -> LoadedBatches:
    """Return batches of random views of train images, and the test images as `view` shows them.

    Args:
        train, test: images with the same class numbers.
        view: of the test images.
        settings: batch size and seed.
        crop: of the train images, "resized" or "padded".
        device: of the pixels.
        ranks: that share each batch; by default one.
        threads: number of threads that decode.

    Raises:
        ValueError: the batch is larger than the train set, or cannot be shared among the ranks.
    """
    where = "gpu" if device.type == "cuda" else "cpu"
    augmentation, background = train_view(crop, view), view.background
    views = RandomViews(
        train, (augmentation,), seed=settings.seed, background=background, threads=threads, device=where
    )
    return LoadedBatches(train, views, test, view, settings, threads=threads, ranks=ranks)


def feature_batches(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    settings: SupervisedSettings,
    ranks: Ranks,
    kind: str = "images",
) -> StoredBatches:
    """Return batches of features (n, F) and labels (n,) of both sets, of images or videos.

    Raises:
        ValueError: the batch is larger than the train set, or cannot be shared among the ranks.
    """
    return StoredBatches(
        *train,
        *test,
        batch_size=settings.rank_batch(ranks.size),
        batches_per_step=settings.accumulation,
        seed=settings.seed,
        ranks=ranks,
        kind=kind,
    )
