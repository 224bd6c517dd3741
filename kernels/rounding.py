"""Round to the dtype of the products, with equal results on a GPU and in Triton's interpreter."""

import triton
import triton.language as tl

# The interpreter truncates to bfloat16 instead of rounding, and multiplies the bits of bfloat16 numbers as integers.
# There, bfloat16 numbers are kept as float32.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def drop_bits(values, BITS: tl.constexpr):
    """Round float32 to the nearest number whose last `BITS` bits are 0, ties to even: 13 for tf32, 16 for bfloat16.

    Tensor cores truncate tf32 operands, which would bias every product.
    """
    bits = values.to(tl.uint32, bitcast=True)
    nearest = (bits + ((1 << (BITS - 1)) - 1) + ((bits >> BITS) & 1)) >> BITS << BITS
    # rounding a NaN up could carry into its sign bit
    return tl.where(values == values, nearest.to(tl.float32, bitcast=True), values)


@triton.jit
def rounded(values, DTYPE: tl.constexpr):
    """Return values as operands of a product in DTYPE."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        return drop_bits(values.to(tl.float32), 16)
    else:
        return values.to(DTYPE)


@triton.jit
def rounded_with_values(values, DTYPE: tl.constexpr, PAIRS: tl.constexpr):
    """Return float32 values as operands of a product in DTYPE, and the rounded values in float32.

    With PAIRS, bfloat16 is rounded two values at a time.
    """
    if INTERPRETED or not PAIRS or tl.bfloat16 != DTYPE:
        operand = rounded(values, DTYPE)
        return operand, operand.to(tl.float32)
    else:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000;", "=r,=r,=r,r,r", [values],
            dtype=(tl.bfloat16, tl.float32), is_pure=True, pack=2,
        )  # fmt: skip


@triton.jit
def store_rounded(pointers, values, mask):
    """Store float32 values, rounded to the dtype of the pointers."""
    if INTERPRETED and pointers.dtype.element_ty == tl.bfloat16:
        values = drop_bits(values, 16)
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)
