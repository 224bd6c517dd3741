"""Schedules over the steps of a run: learning rate, momentum of the momentum encoder, temperature τ_m and weight λ."""

import math

from sce_fast.config import TrainConfig


def numbers_of_step(config: TrainConfig, step: float, *, steps_per_epoch: int, total_steps: int) -> dict[str, float]:
    """Return what changes from step to step, by the names of TrainingStep's arguments.

    Args:
        config: of the run.
        step: from 0; a fraction between two steps if the run has other steps than the schedules.
        steps_per_epoch, total_steps: of the schedules.

    Example:
        >>> numbers_of_step(config, 0, steps_per_epoch=195, total_steps=39000)
        {'learning_rate': 0.0, 'momentum': 0.99, 'target_temperature': 0.05, 'coefficient': 0.5}
    """
    model, loss, optimizer = config.model, config.loss, config.optimizer
    return {
        "learning_rate": learning_rate(
            step,
            base=config.learning_rate,
            start=optimizer.scaled(optimizer.start_learning_rate, config.batch_size),
            end=optimizer.scaled(optimizer.end_learning_rate, config.batch_size),
            warmup_steps=round(optimizer.warmup_epochs * steps_per_epoch),
            total_steps=total_steps,
        ),
        "momentum": momentum(step, base=model.momentum, schedule=model.momentum_schedule, total_steps=total_steps),
        "target_temperature": scheduled(
            step,
            loss.target_temperature,
            start=loss.target_temperature_start,
            warmup=loss.target_temperature_warmup,
            warmup_steps=round(loss.target_temperature_warmup_epochs * steps_per_epoch),
            total_steps=total_steps,
        ),
        "coefficient": scheduled(
            step,
            loss.coefficient,
            start=loss.coefficient_start,
            warmup=loss.coefficient_warmup,
            warmup_steps=round(loss.coefficient_warmup_epochs * steps_per_epoch),
            end=loss.coefficient_end,
            schedule=loss.coefficient_schedule,
            total_steps=total_steps,
        ),
    }


def learning_rate(
    step: float, *, base: float, warmup_steps: int, total_steps: int, start: float = 0.0, end: float = 0.0
) -> float:
    """Return the learning rate of a step: linear warm-up from start to base, then cosine to end.

    With W warm-up steps of T, start + (base − start) · t / (W − 1) for t < W, as in the official code, then
    end + (base − end) · (1 + cos(π (t − W) / (T − W))) / 2. With a warm-up of 0 or 1 steps the run starts at the base
    rate.

    Raises:
        ValueError: the step is not in [0, total_steps], or the warm-up does not fit.

    Example:
        >>> learning_rate(0, base=0.6, warmup_steps=0, total_steps=100)
        0.6
    """
    _check_steps(step, warmup_steps, total_steps)
    if step < warmup_steps and warmup_steps > 1:
        return start + (base - start) * step / (warmup_steps - 1)
    if step < warmup_steps or warmup_steps == total_steps:
        return base
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return end + (base - end) * (1 + math.cos(math.pi * progress)) / 2


def momentum(step: float, *, base: float, schedule: str, total_steps: int) -> float:
    """Return the momentum m of the update after a step: constant, or a cosine from base to exactly 1 at the last step.

    Raises:
        ValueError: the step is not in [0, total_steps], or the schedule is neither "constant" nor "cosine".
    """
    _check_steps(step, 0, total_steps)
    if schedule == "constant":
        return base
    if schedule == "cosine":
        progress = step / max(total_steps - 1, 1)
        return 1 - (1 - base) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    raise ValueError(f"momentum schedule={schedule!r}: expected 'constant' or 'cosine'")


def scheduled(
    step: float,
    value: float,
    *,
    start: float,
    warmup: str,
    warmup_steps: int,
    total_steps: int,
    end: float | None = None,
    schedule: str = "cosine",
) -> float:
    """Return a number of the loss in a step: a warm-up from start to value, then a curve to end.

    The value is reached in the last step of the warm-up, and end in the last step of all. With a warm-up of 0 or 1
    steps the run starts at the value; without end, the value stays. The official code has the same steps, but its
    linear curve runs backwards where it should rise.

    Args:
        warmup, schedule: curve of each part, "linear" or "cosine".

    Raises:
        ValueError: the step is not in [0, total_steps], the warm-up does not fit, or a curve is unknown.

    Example:
        >>> scheduled(1, 0.5, start=1.0, warmup="linear", warmup_steps=3, total_steps=9)
        0.75
    """
    _check_steps(step, warmup_steps, total_steps)
    if step < warmup_steps - 1:
        return _between(start, value, step / (warmup_steps - 1), warmup)
    if end is None or step < warmup_steps:
        return value
    remaining = total_steps - warmup_steps - 1
    return _between(value, end, (step - warmup_steps) / remaining if remaining > 0 else 1.0, schedule)


def _between(first: float, last: float, progress: float, curve: str) -> float:
    """Return the number at a place in [0, 1], or last beyond it."""
    if curve not in ("linear", "cosine"):
        raise ValueError(f"schedule={curve!r}: expected 'linear' or 'cosine'")
    share = (1 - math.cos(math.pi * progress)) / 2 if curve == "cosine" else progress
    return last if progress >= 1 else first + (last - first) * share


def _check_steps(step: float, warmup_steps: int, total_steps: int) -> None:
    if not 0 <= step <= total_steps:
        raise ValueError(f"step={step}: expected 0 to total_steps={total_steps}")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps}: expected 0 to total_steps={total_steps}")
