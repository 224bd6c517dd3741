"""Arguments of the commands that train a classifier, from settings in one dict."""

from typing import Any

from sce_fast.tools.training_options import TrainingOptions

NAMES = TrainingOptions.__dataclass_fields__


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings as arguments: those of TrainingOptions in one `training`, the others as they are."""
    training = TrainingOptions(**{name: value for name, value in settings.items() if name in NAMES})
    return {**{name: value for name, value in settings.items() if name not in NAMES}, "training": training}
