"""Semi-supervised fine-tuning: the whole network is trained on a small labelled part of the train set.

The papers' settings are not published. These are SwAV's for 1 % and 10 % of ImageNet (facebookresearch/swav,
eval_semisup.py and README), with batch statistics over all ranks as there.
"""

from typing import Any

from sce_fast.evaluate.supervised.images import Preset
from sce_fast.evaluate.supervised.settings import SupervisedSettings

SHARES = {"1%": 0.01, "10%": 0.1}  # of the images of each class
_SWAV: dict[str, Any] = {"epochs": 20, "batch_size": 256, "schedule": "steps", "milestones": (12, 16), "decay": 0.2}
PRESETS: dict[str, Preset] = {
    "1%": Preset(
        SupervisedSettings(learning_rates=(5.0,), backbone_learning_rate=0.02, evaluate_every=1, **_SWAV),
        "resized", 224, 256,
    ),
    "10%": Preset(
        SupervisedSettings(learning_rates=(0.2,), backbone_learning_rate=0.01, evaluate_every=1, **_SWAV),
        "resized", 224, 256,
    ),
}  # fmt: skip
