"""A Triton kernel with the tiles of the Hopper kernel, in a file because Triton reads its source."""

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def tiles_kernel(rows, candidates, out, count, N: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr):
    place = tl.arange(0, N)[:, None] * D + tl.arange(0, D)[None, :]
    row = tl.load(rows + place)
    descriptor = tl.make_tensor_descriptor(candidates, shape=[count, D], strides=[D, 1], block_shape=[TILE, D])
    outputs = tl.zeros((N, D), tl.float32)
    for first in range(0, count, TILE):
        tile = descriptor.load([first, 0])
        weights = tl.exp2(tl.dot(row, tile.T)).to(tl.bfloat16)
        outputs = tl.dot(weights, tile, outputs)
    tl.store(out + place, outputs)


def compile_tiles(dim: int, tile: int) -> str:
    """Return the sm_90 PTX of both products of 128 rows with tiles (tile, dim)."""
    signature = {"rows": "*bf16", "candidates": "*bf16", "out": "*fp32", "count": "i32"}
    source = ASTSource(
        tiles_kernel,
        {**signature, "N": "constexpr", "TILE": "constexpr", "D": "constexpr"},
        {(4,): 128, (5,): tile, (6,): dim},
        {(position,): [["tt.divisibility", 16]] for position in range(3)},
    )
    options = {"num_warps": 8, "num_stages": 2}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
