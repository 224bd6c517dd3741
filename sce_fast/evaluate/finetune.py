"""Fine-tuning on labelled videos: the backbone and a linear head are trained together, all layers at one rate.

The settings for UCF101 and HMDB51 are those of the official code (juliendenize/eztorch, run/finetuning). Its papers
fine-tune on Something-Something v2 in SlowFast, whose settings these are (configs/contrastive_ssl): a rate of 0.12 for
a batch of 64.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.videos import ClipViews, VideoPreset

THREE_SPLITS = (1, 2, 3)
WHOLE = 60.0  # seconds, more than any video of Something-Something has: a clip is the whole video
_UCF101 = SupervisedSettings(
    epochs=200, batch_size=64, learning_rates=(0.1,), backbone_learning_rate=0.1, dropout=0.8, evaluate_every=20
)
_COLOUR: dict[str, Any] = {"jitter": 0.8, "grayscale": 0.2}
_SMALL: dict[str, Any] = {
    "size": 112, "shorter_side": (128, 160), "resize": 128, "test_size": 128, "frames": 16, "seconds": 1.28,
}  # fmt: skip
PRESETS: dict[str, VideoPreset] = {
    "ucf101": VideoPreset(_UCF101, ClipViews(**_COLOUR), THREE_SPLITS),
    "hmdb51": VideoPreset(_UCF101, ClipViews(**_COLOUR), THREE_SPLITS),
    "ucf101-small": VideoPreset(_UCF101, ClipViews(**_COLOUR, **_SMALL), THREE_SPLITS),
    "hmdb51-small": VideoPreset(_UCF101, ClipViews(**_COLOUR, **_SMALL), THREE_SPLITS),
    "something-something": VideoPreset(
        SupervisedSettings(
            epochs=22,
            batch_size=64,
            learning_rates=(0.48,),
            backbone_learning_rate=0.48,
            schedule="steps",
            milestones=(14, 18),
            warmup_epochs=0.19,
            weight_decay=1e-6,
            dropout=0.5,
            evaluate_every=4,
        ),
        ClipViews(flip=0.0, clips=1, crops=1, seconds=WHOLE),
    ),
}


def mean_over_splits(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of the means of the accuracies over the splits.

    Example:
        >>> rows = [{"best_top1": 0.5, "top1": t, "top5": None, "mean_per_class": t} for t in (0.25, 0.5)]
        >>> mean_over_splits(rows)
        {'split': 'mean', 'best_top1': 0.5, 'top1': 0.375, 'top5': None, 'mean_per_class': 0.375}
    """
    columns = {name: [row[name] for row in rows] for name in ("best_top1", "top1", "top5", "mean_per_class")}
    means = {name: None if None in values else sum(values) / len(values) for name, values in columns.items()}
    return {"split": "mean", **means}
