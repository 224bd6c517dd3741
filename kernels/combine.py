"""Add the partials of the forward pass in a fixed order and finish loss, gradient and statistics."""

import triton
import triton.language as tl

from sce_fast.kernels.forward_pass import EMPTY_SHIFT, FIXED_LIFT
from sce_fast.kernels.rounding import store_rounded

LN2 = tl.constexpr(0.6931471805599453)
# Unit rows (up to rounding) have a sum of weights of at least 2^-76 under a fixed shift. A smaller sum may have lost
# weights to underflow: the rows are not unit rows, and their loss becomes NaN.
SMALLEST_FIXED_SUM = tl.constexpr(2.0 ** (-40.0 - FIXED_LIFT.value))


@triton.jit
def combine_splits_kernel(
    partials,  # (3, B, splits, rows) shift, sum of the weights, sum of the rounded weights
    outputs,  # (B, splits, rows with an output, D)
    combined_partials,  # (3, B, rows)
    combined_outputs,  # (B, rows with an output, D)
    splits, rows, rows_without_output,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, SPLITS_AT_A_TIME: tl.constexpr,
):  # fmt: skip
    """Add the partials of a row over the splits, always in the same order. Grid: (rows, B)."""
    row, view, views = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    split = tl.arange(0, SPLITS)
    exists = split < splits
    at = tl.cast(view, tl.int64) * splits * rows + row
    size = tl.cast(views, tl.int64) * splits * rows
    shifts = tl.load(partials + at + split * rows, mask=exists, other=EMPTY_SHIFT)
    shift = tl.max(shifts, 0)
    factors = tl.exp2(shifts - shift)
    weight_sum = tl.sum(factors * tl.load(partials + size + at + split * rows, mask=exists, other=0.0), 0)
    to = combined_partials + view * rows + row
    tl.store(to, shift)
    tl.store(to + views * rows, weight_sum)
    if row >= rows_without_output:
        rounded_sums = tl.load(partials + 2 * size + at + split * rows, mask=exists, other=0.0)
        tl.store(to + 2 * views * rows, tl.sum(factors * rounded_sums, 0))
        rows_with_output = rows - rows_without_output
        column = tl.arange(0, BLOCK_D)
        in_row = (column < D)[None, :]
        output = tl.zeros([BLOCK_D], tl.float32)
        for first in range(0, splits, SPLITS_AT_A_TIME):
            split_here = first + tl.arange(0, SPLITS_AT_A_TIME)
            here = split_here < splits
            shifts_here = tl.load(partials + at + split_here * rows, mask=here, other=EMPTY_SHIFT)
            factors_here = tl.exp2(shifts_here - shift)[:, None]
            output_row = (tl.cast(view, tl.int64) * splits + split_here) * rows_with_output + row - rows_without_output
            pointers = outputs + output_row[:, None] * D + column[None, :]
            output += tl.sum(factors_here * tl.load(pointers, mask=here[:, None] & in_row, other=0.0), 0)
        to_row = tl.cast(view, tl.int64) * rows_with_output + row - rows_without_output
        tl.store(combined_outputs + to_row * D + column, output, mask=column < D)


@triton.jit
def _add_partial(
    shift, weight_sum, rounded_sum, output, partials, outputs, slot, size, output_slot, column,
    D: tl.constexpr, OUTPUT: tl.constexpr,
):  # fmt: skip
    """Add the partial of a row at `slot` to (shift, weight_sum, rounded_sum, output)."""
    shift_here = tl.load(partials + slot)
    larger = tl.maximum(shift, shift_here)
    factor, factor_here = tl.exp2(shift - larger), tl.exp2(shift_here - larger)
    weight_sum = weight_sum * factor + factor_here * tl.load(partials + size + slot)
    if OUTPUT:
        rounded_sum = rounded_sum * factor + factor_here * tl.load(partials + 2 * size + slot)
        here = tl.load(outputs + tl.cast(output_slot, tl.int64) * D + column, mask=column < D, other=0.0)
        output = output * factor + factor_here * here
    return larger, weight_sum, rounded_sum, output


@triton.jit
def _log_sum_and_mean(
    shared_partials, shared_outputs, shared_slot, shared_size, shared_output_slot,
    view_partials, view_outputs, view_slot, view_size, view_output_slot, column,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SHARED: tl.constexpr, PER_VIEW: tl.constexpr, FIXED_SHIFT: tl.constexpr,
    OUTPUT: tl.constexpr,
):  # fmt: skip
    """Return log Σ exp(logit) of a row over the shared candidates and those of one view, and their weighted mean.

    With OUTPUT both are NaN if a candidate is not finite or weights have left the range of floats.
    """
    shift = tl.full([], EMPTY_SHIFT, tl.float32)
    weight_sum = tl.full([], 0.0, tl.float32)
    rounded_sum = tl.full([], 0.0, tl.float32)
    output = tl.zeros([BLOCK_D], tl.float32)
    if SHARED:
        shift, weight_sum, rounded_sum, output = _add_partial(
            shift, weight_sum, rounded_sum, output, shared_partials, shared_outputs, shared_slot, shared_size,
            shared_output_slot, column, D, OUTPUT,
        )  # fmt: skip
    if PER_VIEW:
        shift, weight_sum, rounded_sum, output = _add_partial(
            shift, weight_sum, rounded_sum, output, view_partials, view_outputs, view_slot, view_size,
            view_output_slot, column, D, OUTPUT,
        )  # fmt: skip
    if FIXED_SHIFT:
        weight_sum = tl.where(weight_sum < SMALLEST_FIXED_SUM, float("nan"), weight_sum)
    log_sum = (shift + tl.log2(weight_sum)) * LN2
    if OUTPUT:
        output = output / rounded_sum
        # A candidate that is not finite reaches the loss even at a weight of 0. A sum that has overflowed reaches the
        # mean, which would be finite / ∞ = 0.
        log_sum += 0.0 * (tl.sum(output, 0) + rounded_sum)
        output += 0.0 * log_sum
    return log_sum, output


@triton.jit
def _log1p(x):
    """Return log(1 + x) for x in [0, 1]; the quotient corrects the rounding error of 1 + x."""
    rounded_up = 1.0 + x
    return tl.where(rounded_up == 1.0, x, tl.log(rounded_up) * x / (rounded_up - 1.0))


@triton.jit(do_not_specialize=["terms"])
def combine_kernel(
    query, key,  # (V · N, D), (U · N, D)
    shared_partials, shared_outputs,  # (3, 1, rows), (1, rows with an output, D)
    view_partials, view_outputs,  # (3, U, rows), (U, rows with an output, D): over the batch keys of each key view
    loss_rows, gradient, target_entropy, positive_probability,
    scalars, temperature, target_temperature, coefficient,
    query_stride, key_stride, query_views, key_views, terms,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SHARED: tl.constexpr, PER_VIEW: tl.constexpr, FIXED_SHIFT: tl.constexpr,
    GRADIENT: tl.constexpr, TARGET: tl.constexpr, ZERO_LOGIT: tl.constexpr, SAME_VIEWS: tl.constexpr,
):  # fmt: skip
    """Finish all terms of a sample, from the rows as given (not rounded). Grid: (N,)."""
    i, batch = tl.program_id(0), tl.num_programs(0)
    if scalars is not None:
        temperature = tl.load(scalars)
        target_temperature = tl.load(scalars + 1)
        coefficient = tl.load(scalars + 2)
    column = tl.arange(0, BLOCK_D)
    in_row = column < D
    students = query_views * batch
    # A forward pass has the student rows, then with a target the teacher rows. Without a gradient only the teacher rows
    # have outputs.
    shared_size = students + (key_views * batch if TARGET else 0)
    view_rows = students + (batch if TARGET else 0)
    shared_no_output = 0 if GRADIENT else students
    view_output_rows = view_rows - shared_no_output
    view_size = key_views * view_rows

    loss, probability = 0.0, 0.0
    for v in range(0, query_views):
        row = v * batch + i
        q = tl.load(query + tl.cast(row, tl.int64) * query_stride + column, mask=in_row, other=0.0).to(tl.float32)
        total = tl.zeros([BLOCK_D], tl.float32)
        for u in range(0, key_views):
            k_row = u * batch + i
            k = tl.load(key + tl.cast(k_row, tl.int64) * key_stride + column, mask=in_row, other=0.0).to(tl.float32)
            teacher_log_sum, teacher_mean = 0.0, k
            if TARGET:
                teacher_log_sum, teacher_mean = _log_sum_and_mean(
                    shared_partials, shared_outputs, students + k_row, shared_size,
                    students - shared_no_output + k_row,
                    view_partials, view_outputs, u * view_rows + students + i, view_size,
                    u * view_output_rows + students - shared_no_output + i, column,
                    D, BLOCK_D, SHARED, PER_VIEW, FIXED_SHIFT, True,
                )  # fmt: skip
            if v == 0:
                entropy = float("nan")
                if TARGET:
                    entropy = teacher_log_sum - tl.sum(k * teacher_mean, 0) / target_temperature
                tl.store(target_entropy + k_row, entropy)
            live = True
            if SAME_VIEWS:
                live = u != v
            if live:
                log_sum, mean = _log_sum_and_mean(
                    shared_partials, shared_outputs, row, shared_size, row,
                    view_partials, view_outputs, u * view_rows + row, view_size, u * view_output_rows + row, column,
                    D, BLOCK_D, SHARED, PER_VIEW, FIXED_SHIFT, GRADIENT,
                )  # fmt: skip
                own_logit = tl.sum(q * k, 0) / temperature
                log_odds = log_sum - own_logit
                # NaN where a logit is not finite, which the bounded functions below would hide
                bad = 0.0 * own_logit + 0.0 * log_sum
                row_loss = tl.maximum(log_odds, 0.0) + _log1p(tl.exp(-tl.abs(log_odds))) + bad
                others_probability = 1.0 / (1.0 + tl.exp(-log_odds))  # 1 − p₀
                others_weight = 0.0
                if TARGET:
                    others_weight = 1.0 - coefficient
                    if ZERO_LOGIT:  # less s₀ = 1 / (1 + B), the weight of the logit 0 that stands for the own key
                        others_weight *= 1.0 / (1.0 + tl.exp(-teacher_log_sum))
                    row_loss += others_weight * tl.sum(q * (k - teacher_mean), 0) / temperature
                loss += row_loss
                probability += 1.0 / (1.0 + tl.exp(log_odds)) + bad
                if GRADIENT:
                    term = others_probability * (mean - k) + bad
                    if TARGET:
                        term += others_weight * (k - teacher_mean)
                    total += term
        if GRADIENT:
            pointers = gradient + tl.cast(row, tl.int64) * D + column
            store_rounded(pointers, total / (temperature * terms), in_row)
    tl.store(loss_rows + i, loss / terms)
    tl.store(positive_probability + i, probability / terms)
