"""The papers' linear evaluation: a linear classifier trained by SGD on augmented samples, above a frozen backbone.

The settings for images are those of the official code (CEA-LIST/SCE, configs/run/evaluation/linear_classifier; the
results that the papers report for ImageNet use its mocov3/resnet50), those for videos are of juliendenize/eztorch
(run/evaluation/linear_classifier/sce).
"""

from typing import Any

from sce_fast.evaluate.supervised.images import Preset
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.videos import ClipViews, VideoPreset

_MOCO: dict[str, Any] = {
    "learning_rates": (30.0,),
    "scaling": "none",
    "schedule": "steps",
    "milestones": (60, 80),
    "decay": 0.1,
}
PRESETS: dict[str, Preset] = {
    "imagenet": Preset(SupervisedSettings(epochs=90, batch_size=1024, learning_rates=(0.1,)), "resized", 224, 256),
    "imagenet-moco": Preset(SupervisedSettings(epochs=100, batch_size=512, **_MOCO), "resized", 224, 256),
    "cifar10": Preset(SupervisedSettings(epochs=100, batch_size=256, **_MOCO), "padded", 32, 32),
}
_KINETICS = SupervisedSettings(epochs=60, batch_size=512, learning_rates=(2.0,), warmup_epochs=8)
_SMALL = ClipViews(size=112, shorter_side=(128, 160), resize=128, test_size=128, frames=16, seconds=1.28)
VIDEO_PRESETS: dict[str, VideoPreset] = {
    "kinetics400": VideoPreset(_KINETICS, ClipViews()),
    "kinetics200": VideoPreset(_KINETICS, ClipViews()),
    "kinetics400-small": VideoPreset(_KINETICS, _SMALL),
    "kinetics200-small": VideoPreset(_KINETICS, _SMALL),
}
