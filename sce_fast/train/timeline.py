"""Where each step stands in a run: its epoch, and its place on the schedules."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeline:
    """The epochs of a run, which may get another number of steps when a resume accepts other images.

    The schedules count in the steps that an epoch had when the run began, so that they go on without a jump.

    Example:
        >>> Timeline(epochs=3, steps_per_epoch=5, planned=5).total_steps
        15
    """

    epochs: int
    steps_per_epoch: int
    planned: int  # steps per epoch when the run began
    from_step: int = 0  # the first step of an epoch, from which on all epochs have steps_per_epoch steps
    from_epoch: int = 0  # that epoch

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.from_step + (self.epochs - self.from_epoch) * self.steps_per_epoch

    def place(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step, and the number of steps before it in this epoch; both count from 0."""
        epochs, before = divmod(step - self.from_step, self.steps_per_epoch)
        return self.from_epoch + epochs, before

    def scheduled(self, step: int) -> float:
        """Return the place of a step on the schedules, in steps as they were when the run began."""
        epoch, before = self.place(step)
        if self.steps_per_epoch == self.planned:
            return epoch * self.planned + before
        return (epoch + before / self.steps_per_epoch) * self.planned

    @property
    def scheduled_total(self) -> int:
        """Length of the schedules, in steps as they were when the run began."""
        return self.epochs * self.planned
