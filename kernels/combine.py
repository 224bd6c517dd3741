"""Adds up the partial results of the pass in a fixed order, and makes loss, gradient and statistics of them."""

import triton
import triton.language as tl

from sce_fast.kernels.forward_pass import FIXED_LIFT, NOTHING_SEEN
from sce_fast.kernels.rounding import store_rounded

LN2 = tl.constexpr(0.6931471805599453)
# The smallest sum of weights that rows of length 1 (up to rounding) can give under a fixed shift is 2^-76. A smaller
# one may have lost weights to underflow: it is of rows that break the contract, and no result.
SMALLEST_FIXED_SUM = tl.constexpr(2.0 ** (-40.0 - FIXED_LIFT.value))


@triton.jit
def merge_splits_kernel(
    statistics,  # (3, B, splits, rows) shift, exact sum, sum of the rounded weights
    outputs,  # (B, splits, rows with an output, D)
    merged_statistics,  # (3, B, rows)
    merged_outputs,  # (B, rows with an output, D)
    splits, rows, rows_without_output,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, SPLITS_AT_A_TIME: tl.constexpr,
):  # fmt: skip
    """Grid: (rows, B). The sum over splits has the same order every time; nothing is read that is written here."""
    row, view, views = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    split = tl.arange(0, SPLITS)
    exists = split < splits
    at = tl.cast(view, tl.int64) * splits * rows + row
    size = tl.cast(views, tl.int64) * splits * rows
    shifts = tl.load(statistics + at + split * rows, mask=exists, other=NOTHING_SEEN)
    shift = tl.max(shifts, 0)
    factors = tl.exp2(shifts - shift)
    exact = tl.sum(factors * tl.load(statistics + size + at + split * rows, mask=exists, other=0.0), 0)
    to = merged_statistics + view * rows + row
    tl.store(to, shift)
    tl.store(to + views * rows, exact)
    if row >= rows_without_output:
        rounded = tl.load(statistics + 2 * size + at + split * rows, mask=exists, other=0.0)
        tl.store(to + 2 * views * rows, tl.sum(factors * rounded, 0))
        rows_with_output = rows - rows_without_output
        column = tl.arange(0, BLOCK_D)
        in_row = (column < D)[None, :]
        total = tl.zeros([BLOCK_D], tl.float32)
        for first in range(0, splits, SPLITS_AT_A_TIME):
            split_here = first + tl.arange(0, SPLITS_AT_A_TIME)
            here = split_here < splits
            shifts_here = tl.load(statistics + at + split_here * rows, mask=here, other=NOTHING_SEEN)
            factors_here = tl.exp2(shifts_here - shift)[:, None]
            output_row = (tl.cast(view, tl.int64) * splits + split_here) * rows_with_output + row - rows_without_output
            pointers = outputs + output_row[:, None] * D + column[None, :]
            total += tl.sum(factors_here * tl.load(pointers, mask=here[:, None] & in_row, other=0.0), 0)
        to_row = tl.cast(view, tl.int64) * rows_with_output + row - rows_without_output
        tl.store(merged_outputs + to_row * D + column, total, mask=column < D)


@triton.jit
def _take(
    shift, exact, rounded, output, statistics, outputs, slot, size, output_slot, column,
    D: tl.constexpr, OUTPUT: tl.constexpr,
):  # fmt: skip
    """Adds one stream's partial result of a row."""
    shift_here = tl.load(statistics + slot)
    larger = tl.maximum(shift, shift_here)
    factor, factor_here = tl.exp2(shift - larger), tl.exp2(shift_here - larger)
    exact = exact * factor + factor_here * tl.load(statistics + size + slot)
    if OUTPUT:
        rounded = rounded * factor + factor_here * tl.load(statistics + 2 * size + slot)
        here = tl.load(outputs + tl.cast(output_slot, tl.int64) * D + column, mask=column < D, other=0.0)
        output = output * factor + factor_here * here
    return larger, exact, rounded, output


@triton.jit
def _seen(
    shared_statistics, shared_outputs, shared_slot, shared_size, shared_output_slot,
    own_statistics, own_outputs, own_slot, own_size, own_output_slot, column,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SHARED: tl.constexpr, PER_VIEW: tl.constexpr, FIXED: tl.constexpr,
    OUTPUT: tl.constexpr,
):  # fmt: skip
    """What a row has seen of the shared candidates and of those of one view: log Σ exp(logit), and their mean."""
    shift = tl.full([], NOTHING_SEEN, tl.float32)
    exact = tl.full([], 0.0, tl.float32)
    rounded = tl.full([], 0.0, tl.float32)
    output = tl.zeros([BLOCK_D], tl.float32)
    if SHARED:
        shift, exact, rounded, output = _take(
            shift, exact, rounded, output, shared_statistics, shared_outputs, shared_slot, shared_size,
            shared_output_slot, column, D, OUTPUT,
        )  # fmt: skip
    if PER_VIEW:
        shift, exact, rounded, output = _take(
            shift, exact, rounded, output, own_statistics, own_outputs, own_slot, own_size, own_output_slot, column,
            D, OUTPUT,
        )  # fmt: skip
    if FIXED:
        exact = tl.where(exact < SMALLEST_FIXED_SUM, float("nan"), exact)
    log_sum = (shift + tl.log2(exact)) * LN2
    if OUTPUT:
        output = output / rounded
        log_sum += 0.0 * tl.sum(output, 0)  # a candidate that is not finite, at a weight of 0
    return log_sum, output


@triton.jit
def _log1p(x):
    """log(1 + x) for x in [0, 1]: what 1 + x rounds away of a small x comes back by the quotient."""
    rounded_up = 1.0 + x
    return tl.where(rounded_up == 1.0, x, tl.log(rounded_up) * x / (rounded_up - 1.0))


@triton.jit(do_not_specialize=["terms"])
def epilogue_kernel(
    query, key,  # (V · N, D), (U · N, D)
    shared_statistics, shared_outputs,  # (3, 1, rows), (1, rows with an output, D)
    own_statistics, own_outputs,  # (3, U, rows), (U, rows with an output, D): of the batch keys of each view
    loss_rows, gradient, target_entropy, positive_probability,
    scalars, temperature, target_temperature, coefficient,
    query_stride, key_stride, query_views, key_views, terms,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SHARED: tl.constexpr, PER_VIEW: tl.constexpr, FIXED: tl.constexpr,
    GRADIENT: tl.constexpr, TARGET: tl.constexpr, ZERO_LOGIT: tl.constexpr, SAME_VIEWS: tl.constexpr,
):  # fmt: skip
    """Grid: (N,). All terms of a sample, from the rows as they came (not rounded)."""
    i, batch = tl.program_id(0), tl.num_programs(0)
    if scalars is not None:
        temperature = tl.load(scalars)
        target_temperature = tl.load(scalars + 1)
        coefficient = tl.load(scalars + 2)
    column = tl.arange(0, BLOCK_D)
    in_row = column < D
    students = query_views * batch
    # rows of a stream: the students, then (with a target) the teachers; their outputs without the students'
    shared_size = students + (key_views * batch if TARGET else 0)
    own_rows = students + (batch if TARGET else 0)
    shared_no_output = 0 if GRADIENT else students
    own_outputs_rows = own_rows - shared_no_output
    own_size = key_views * own_rows

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
                teacher_log_sum, teacher_mean = _seen(
                    shared_statistics, shared_outputs, students + k_row, shared_size,
                    students - shared_no_output + k_row,
                    own_statistics, own_outputs, u * own_rows + students + i, own_size,
                    u * own_outputs_rows + students - shared_no_output + i, column,
                    D, BLOCK_D, SHARED, PER_VIEW, FIXED, True,
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
                log_sum, mean = _seen(
                    shared_statistics, shared_outputs, row, shared_size, row,
                    own_statistics, own_outputs, u * own_rows + row, own_size, u * own_outputs_rows + row, column,
                    D, BLOCK_D, SHARED, PER_VIEW, FIXED, GRADIENT,
                )  # fmt: skip
                own = tl.sum(q * k, 0) / temperature
                above = log_sum - own
                # what is not finite stays so, whatever it is multiplied with
                bad = 0.0 * own + 0.0 * log_sum
                row_loss = tl.maximum(above, 0.0) + _log1p(tl.exp(-tl.abs(above))) + bad
                others = 1.0 / (1.0 + tl.exp(-above))  # 1 − p₀
                weight = 0.0
                if TARGET:
                    weight = 1.0 - coefficient
                    if ZERO_LOGIT:  # without 1 / (1 + B), the share of the logit 0 that stands for the own key
                        weight *= 1.0 / (1.0 + tl.exp(-teacher_log_sum))
                    row_loss += weight * tl.sum(q * (k - teacher_mean), 0) / temperature
                loss += row_loss
                probability += 1.0 / (1.0 + tl.exp(above)) + bad
                if GRADIENT:
                    term = others * (mean - k) + bad
                    if TARGET:
                        term += weight * (k - teacher_mean)
                    total += term
        if GRADIENT:
            pointers = gradient + tl.cast(row, tl.int64) * D + column
            store_rounded(pointers, total / (temperature * terms), in_row)
    tl.store(loss_rows + i, loss / terms)
    tl.store(positive_probability + i, probability / terms)
