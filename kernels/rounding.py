"""Rounding to the dtype of the products, the same on a GPU and in Triton's interpreter."""

import triton
import triton.language as tl

# The interpreter cuts instead of rounding to bfloat16, and multiplies its bits as if they were integers: there a
# bfloat16 number is kept as a float32.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def drop_bits(values, BITS: tl.constexpr):
    """float32 rounded to the nearest number whose last `BITS` bits are 0, ties to even: 13 for tf32, 16 for bfloat16.

    Tensor cores cut tf32 operands, which biases every product.
    """
    bits = values.to(tl.uint32, bitcast=True)
    nearest = (bits + ((1 << (BITS - 1)) - 1) + ((bits >> BITS) & 1)) >> BITS << BITS
    # a NaN could carry over into the sign
    return tl.where(values == values, nearest.to(tl.float32, bitcast=True), values)


@triton.jit
def rounded(values, DTYPE: tl.constexpr):
    """Values as operands of a product in DTYPE."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        return drop_bits(values.to(tl.float32), 16)
    else:
        return values.to(DTYPE)


@triton.jit
def store_rounded(pointers, values, mask):
    """Stores float32 values as the pointers' dtype."""
    if INTERPRETED and pointers.dtype.element_ty == tl.bfloat16:
        values = drop_bits(values, 16)
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)
