"""The papers' linear evaluation: a linear classifier trained by SGD on augmented images, above a frozen backbone.

The settings are those of the official code (CEA-LIST/SCE, configs/run/evaluation/linear_classifier; the results that
the papers report for ImageNet use its mocov3/resnet50).
"""

from typing import Any

from sce_fast.evaluate.supervised.images import Preset
from sce_fast.evaluate.supervised.settings import SupervisedSettings

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
