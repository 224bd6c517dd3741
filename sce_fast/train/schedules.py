"""Schedules over the steps of a run: learning rate, and momentum of the momentum encoder."""

import math


def learning_rate(step: float, *, base: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of a step: linear warm-up from 0, then cosine to 0.

    base · t / (W − 1) for t < W, as in the official code, then base · (1 + cos(π (t − W) / (T − W))) / 2. With
    a warm-up of 0 or 1 steps the run starts at the base rate.

    Raises:
        ValueError: the step is not in [0, total_steps], or the warm-up does not fit.

    Example:
        >>> learning_rate(0, base=0.6, warmup_steps=0, total_steps=100)
        0.6
    """
    _check_step(step, total_steps)
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps}: expected 0 to total_steps={total_steps}")
    if step < warmup_steps and warmup_steps > 1:
        return base * step / (warmup_steps - 1)
    if step < warmup_steps or warmup_steps == total_steps:
        return base
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return base * (1 + math.cos(math.pi * progress)) / 2


def momentum(step: float, *, base: float, schedule: str, total_steps: int) -> float:
    """Return the momentum m of the update after a step: constant, or a cosine from base to exactly 1 at the last step.

    Raises:
        ValueError: the step is not in [0, total_steps], or the schedule is neither "constant" nor "cosine".
    """
    _check_step(step, total_steps)
    if schedule == "constant":
        return base
    if schedule == "cosine":
        progress = step / max(total_steps - 1, 1)
        return 1 - (1 - base) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    raise ValueError(f"momentum schedule={schedule!r}: expected 'constant' or 'cosine'")


def _check_step(step: float, total_steps: int) -> None:
    if not 0 <= step <= total_steps:
        raise ValueError(f"step={step}: expected 0 to total_steps={total_steps}")
