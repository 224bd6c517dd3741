"""Options of all commands that train a classifier."""

from dataclasses import dataclass
from typing import Any

from tyro.conf import OmitArgPrefixes

from sce_fast.config.batch import Scaling
from sce_fast.evaluate.supervised.settings import Precision, Schedule, SupervisedSettings
from sce_fast.util.settings import replaced


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How classifiers are trained. Options that are left out have the values of the preset."""

    epochs: int | None = None
    """Passes over the train set."""
    batch_size: int | None = None
    """Samples per optimizer step, over all ranks."""
    accumulation: int | None = None
    """Parts into which a rank's batch is split to save memory. In a trained backbone each part has its own batch
    statistics."""
    scaling: Scaling | None = None
    """The rate used is the base rate times batch / 256 (linear), times its square root (sqrt), or the base rate
    (none)."""
    schedule: Schedule | None = None
    """A cosine to 0, or steps at the milestones."""
    milestones: tuple[int, ...] | None = None
    """Epochs from which on the rate is multiplied by the decay."""
    decay: float | None = None
    """Factor at each milestone."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up from 0."""
    momentum: float | None = None
    """Momentum of SGD."""
    weight_decay: float | None = None
    """L2 penalty on weights; biases and normalisation layers have none."""
    precision: Precision | None = None
    """Precision of the backbone. bfloat16 uses autocast."""
    seed: int | None = None
    """Seed of the classifiers, the order of the samples, the augmentations and the dropout."""
    evaluate_every: int | None = None
    """Epochs between two tests."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints."""

    def settings(self, preset: SupervisedSettings, **more: Any) -> SupervisedSettings:
        """Return the settings of a preset with the options that are given.

        Args:
            preset: its values stand where an option is None.
            more: options that only some commands have; None leaves them as in the preset, too.

        Raises:
            ValueError, TypeError: a setting is out of range.
        """
        changes = {name: value for name, value in {**vars(self), **more}.items() if value is not None}
        if changes.get("schedule") == "cosine":
            changes.setdefault("milestones", ())  # those of the preset mean nothing here
        return replaced(preset, changes)


Training = OmitArgPrefixes[TrainingOptions]
