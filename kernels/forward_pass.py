"""The forward pass over the candidates: FlashAttention's forward with the candidates as both keys and values.

A block of rows of one side (student or teacher) streams the candidates of one split, tile by tile. Each tile is loaded
once and feeds both products, logits = rows · tileᵀ and output += weights · tile. The sums of a row over a split form a
partial (shift, sum, rounded_sum, output). combine.py adds the partials.
"""

import triton
import triton.language as tl

from sce_fast.kernels.rounding import drop_bits, rounded, rounded_with_values

# The shift of a row without candidates. It is finite because −∞ − (−∞) would be NaN.
EMPTY_SHIFT = tl.constexpr(-1.0e30)
# Weights are 2^(logit − shift). A fixed shift lies this far below the largest logit of unit rows. With
# 2 · log₂e / τ ≤ 115 the smallest weight is then 2^-75, far above the underflow at 2^-126.
FIXED_LIFT = tl.constexpr(40.0)
# A running shift lies this far below the row's maximum, so that float16 holds weights down to 2^-38 of the largest.
RUNNING_LIFT = tl.constexpr(14.0)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _columns(exists, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Return columns [FIRST, FIRST + WIDTH) and a mask of the columns below D in existing rows."""
    columns = FIRST + tl.arange(0, WIDTH)
    if FIRST + WIDTH <= D:
        return columns[None, :], exists[:, None]
    else:
        return columns[None, :], exists[:, None] & (columns < D)[None, :]


@triton.jit
def _load_rows(
    rows, stride, index, exists, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Load columns [FIRST, FIRST + WIDTH) of the rows at `index` as operands of a product, zero where masked."""
    columns, mask = _columns(exists, FIRST, WIDTH, D)
    values = tl.load(rows + index[:, None] * stride + columns, mask=mask, other=0.0)
    if PRECISION == "tf32":
        values = drop_bits(values.to(tl.float32), 13)
    return rounded(values, PRODUCT)


@triton.jit
def _load_tile(
    tile_rows, stride, left, FIRST: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Load columns of a tile of which `left` candidates exist; EVEN tiles are full and need no row mask."""
    index = tl.arange(0, BLOCK)
    columns = FIRST + tl.arange(0, WIDTH)
    pointers = tile_rows + index[:, None] * stride + columns[None, :]
    if EVEN and FIRST + WIDTH <= D:
        return tl.load(pointers)
    elif EVEN:
        return tl.load(pointers, mask=(columns < D)[None, :], other=0.0)
    else:
        return tl.load(pointers, mask=(index < left)[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _add_tiles(
    head, tail, candidates, stride, count, first_tile, last_tile, own, scale,
    shifts, sums, rounded_sums, output_head, output_tail,
    D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, BLOCK_CANDIDATES: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, ROUND_PAIRS: tl.constexpr,
    FIXED_SHIFT: tl.constexpr, OUTPUT: tl.constexpr, MASK_OWN: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Add tiles [first_tile, last_tile) of the queue or of the batch keys to the partials of a block of rows."""
    for tile in range(first_tile, last_tile):
        first = tile * BLOCK_CANDIDATES
        tile_rows = candidates + tl.cast(first, tl.int64) * stride
        tile_head = rounded(_load_tile(tile_rows, stride, count - first, 0, HEAD, BLOCK_CANDIDATES, D, EVEN), PRODUCT)
        products = tl.dot(head, tl.trans(tile_head), input_precision=PRECISION)
        if TAIL > 0:
            tile_tail = rounded(
                _load_tile(tile_rows, stride, count - first, HEAD, TAIL, BLOCK_CANDIDATES, D, EVEN), PRODUCT
            )
            products = tl.dot(tail, tl.trans(tile_tail), products, input_precision=PRECISION)
        if not OUTPUT:
            # −∞ from a bad candidate must not become a weight of 0. With an output, 0 · ∞ gives the NaN.
            products = tl.where(products == float("-inf"), float("nan"), products)
        if MASK_OWN or not EVEN:
            columns = first + tl.arange(0, BLOCK_CANDIDATES)
            if not EVEN:
                products = tl.where((columns < count)[None, :], products, float("-inf"))
            if MASK_OWN:
                products = tl.where(columns[None, :] == own[:, None], float("-inf"), products)
        if not FIXED_SHIFT:
            larger = tl.maximum(shifts, tl.max(products, 1) * scale - RUNNING_LIFT)
            rescaling = tl.exp2(shifts - larger)
            shifts = larger
            sums *= rescaling
            rounded_sums *= rescaling
            if OUTPUT:
                output_head *= rescaling[:, None]
                if TAIL > 0:
                    output_tail *= rescaling[:, None]
        weights = tl.exp2(products * scale - shifts[:, None])
        sums += tl.sum(weights, 1)
        if OUTPUT:
            if PRECISION == "tf32":
                weights = drop_bits(weights, 13)
            weights, rounded_weights = rounded_with_values(weights, PRODUCT, ROUND_PAIRS)
            rounded_sums += tl.sum(rounded_weights, 1)
            output_head = tl.dot(weights, tile_head, output_head, input_precision=PRECISION)
            if TAIL > 0:
                output_tail = tl.dot(weights, tile_tail, output_tail, input_precision=PRECISION)
    return shifts, sums, rounded_sums, output_head, output_tail


@triton.jit(do_not_specialize=[
    "batch", "student_rows", "teacher_rows", "workspace_rows", "output_rows", "first_teacher", "first_teacher_output",
    "batch_count", "queue_count", "row_offset",
])  # fmt: skip
def forward_pass_kernel(
    query,  # (V · N, D); these four are in the dtype of the products
    key,  # (U · N, D)
    batch_keys,  # (B, M, D)
    queue,  # (K, D)
    partials,  # (3, B, splits, workspace_rows) shift, sum of the weights, sum of the rounded weights
    outputs,  # (B, splits, output_rows, D) Σ rounded weight · candidate
    scalars,  # (3,) temperature, target temperature, coefficient; None if the host passes numbers
    temperature, target_temperature,
    query_stride, key_stride, batch_view_stride, batch_stride, queue_stride,
    batch,  # N
    student_rows, teacher_rows,  # of this launch, with PER_VIEW of one of its key views; 0 for none
    workspace_rows, output_rows, first_teacher, first_teacher_output,  # teacher rows follow the student rows
    batch_count, queue_count, row_offset,
    D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CANDIDATES: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, ROUND_PAIRS: tl.constexpr, FIXED_SHIFT: tl.constexpr,
    OUTPUT: tl.constexpr,
    HAS_BATCH: tl.constexpr, HAS_QUEUE: tl.constexpr, EVEN_BATCH: tl.constexpr, EVEN_QUEUE: tl.constexpr,
    PER_VIEW: tl.constexpr,  # key view u = program_id(2) streams batch_keys[u] for the rows that have a term with it
    SKIP_OWN_VIEW: tl.constexpr,  # query view u has no term with key view u
):  # fmt: skip
    """Write the partials of a block of rows over one split. Grid: (student blocks, then teacher blocks; splits; B)."""
    student_blocks = tl.cdiv(student_rows, BLOCK_ROWS)
    block, view = tl.program_id(0), tl.program_id(2)
    is_student = block < student_blocks
    first_row = (block if is_student else block - student_blocks) * BLOCK_ROWS
    rows_here = student_rows if is_student else teacher_rows
    skipped_from = rows_here  # rows behind the view without a term move up
    if SKIP_OWN_VIEW:  # noqa: SIM102 (a compile-time constant, then a run-time value)
        if is_student & (view * batch < student_rows):
            skipped_from = view * batch
            rows_here -= batch
            if first_row >= rows_here:
                return
    row = first_row + tl.arange(0, BLOCK_ROWS)
    exists = row < rows_here
    row += tl.where(row >= skipped_from, batch, 0)
    own = row_offset + row % batch
    if scalars is not None:
        temperature = tl.load(scalars)
        target_temperature = tl.load(scalars + 1)
    scale = LOG2E / (temperature if is_student else target_temperature)

    split, splits = tl.program_id(1), tl.num_programs(1)
    batch_tiles = tl.cdiv(batch_count, BLOCK_CANDIDATES) if HAS_BATCH else 0
    queue_tiles = tl.cdiv(queue_count, BLOCK_CANDIDATES) if HAS_QUEUE else 0
    tiles = tl.cast(batch_tiles + queue_tiles, tl.int64)
    first_tile = (tiles * split // splits).to(tl.int32)
    last_tile = (tiles * (split + 1) // splits).to(tl.int32)

    # Pointer and stride are chosen before the load. An operand chosen after it passes through registers, and wgmma's
    # copy of it in shared memory is read again for every tile.
    tl.static_assert(query.dtype.element_ty == PRODUCT and key.dtype.element_ty == PRODUCT)
    rows = query if is_student else key
    rows_stride = query_stride if is_student else key_stride
    index = row
    if PER_VIEW:
        index += 0 if is_student else view * batch
        batch_keys += view * tl.cast(batch_view_stride, tl.int64)
    head = _load_rows(rows, rows_stride, index, exists, 0, HEAD, D, PRODUCT, PRECISION)
    output_head = tl.zeros([BLOCK_ROWS, HEAD], tl.float32)
    tail, output_tail = head, output_head
    if TAIL > 0:
        tail = _load_rows(rows, rows_stride, index, exists, HEAD, TAIL, D, PRODUCT, PRECISION)
        output_tail = tl.zeros([BLOCK_ROWS, TAIL], tl.float32)
    shifts = tl.zeros([BLOCK_ROWS], tl.float32) + EMPTY_SHIFT
    if FIXED_SHIFT:
        shifts = tl.zeros([BLOCK_ROWS], tl.float32) + (scale - FIXED_LIFT)
    sums = tl.zeros([BLOCK_ROWS], tl.float32)
    rounded_sums = tl.zeros([BLOCK_ROWS], tl.float32)
    if HAS_BATCH:
        shifts, sums, rounded_sums, output_head, output_tail = _add_tiles(
            head, tail, batch_keys, batch_stride, batch_count, first_tile, tl.minimum(last_tile, batch_tiles), own,
            scale, shifts, sums, rounded_sums, output_head, output_tail,
            D, HEAD, TAIL, BLOCK_CANDIDATES, PRODUCT, PRECISION, ROUND_PAIRS, FIXED_SHIFT, OUTPUT, True, EVEN_BATCH,
        )  # fmt: skip
    if HAS_QUEUE:
        shifts, sums, rounded_sums, output_head, output_tail = _add_tiles(
            head, tail, queue, queue_stride, queue_count,
            tl.maximum(first_tile - batch_tiles, 0), last_tile - batch_tiles, own,
            scale, shifts, sums, rounded_sums, output_head, output_tail,
            D, HEAD, TAIL, BLOCK_CANDIDATES, PRODUCT, PRECISION, ROUND_PAIRS, FIXED_SHIFT, OUTPUT, False, EVEN_QUEUE,
        )  # fmt: skip

    # Recomputed here, so that no registers hold these values during the loops.
    row = first_row + tl.arange(0, BLOCK_ROWS)
    exists = row < rows_here
    row += tl.where(row >= skipped_from, batch, 0)
    share = tl.cast(view * splits + split, tl.int64)
    slot = partials + share * workspace_rows + row + (0 if is_student else first_teacher)
    size = tl.cast(splits * tl.num_programs(2), tl.int64) * workspace_rows
    tl.store(slot, shifts, mask=exists)
    tl.store(slot + size, sums, mask=exists)
    if OUTPUT:
        tl.store(slot + 2 * size, rounded_sums, mask=exists)
        output_row = outputs + (share * output_rows + row + (0 if is_student else first_teacher_output)) * D
        _store(output_row, output_head, exists, 0, HEAD, D)
        if TAIL > 0:
            _store(output_row, output_tail, exists, HEAD, TAIL, D)


@triton.jit
def _store(rows, values, exists, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Store columns [FIRST, FIRST + WIDTH) of the existing rows."""
    columns, mask = _columns(exists, FIRST, WIDTH, D)
    tl.store(rows[:, None] + columns, values, mask=mask)
