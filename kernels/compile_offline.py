"""Compiles every kernel ahead of time, without a GPU, and says what registers and memory it takes."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sce_fast.kernels import plan
from sce_fast.kernels.combine import epilogue_kernel, merge_splits_kernel
from sce_fast.kernels.enqueue import advance_kernel, enqueue_kernel
from sce_fast.kernels.forward_pass import sce_forward_kernel
from sce_fast.kernels.solve import triton_dtype

ARCHITECTURES = (80, 90, 100)
DIMS = (64, 128, 256, 384, 512)
# At these D what is rare is compiled too. Three tf32 products of longer rows are left out: they spill some hundred
# bytes a thread in every shape, since 16 rows of an operand are already all the registers that a thread has.
WHOLE = (128, 256)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@dataclass(frozen=True)
class Variant:
    """A kernel as users meet it: its constants, and the dtypes of its inputs and of the gradient."""

    kernel: Any
    name: str
    constants: dict[str, Any]
    dtype: torch.dtype = torch.float32
    num_warps: int = 1
    num_stages: int = 1


def compiled(architecture: int) -> Iterator[tuple[str, str, int, int, int]]:
    """(kernel, variant, registers a thread, bytes of shared memory a block, bytes spilled a thread) of each kernel.

    Compiles every kernel at each D of DIMS in its default configuration, for 80, 90, 100, or another architecture of
    plan.SHARED_MEMORY; no GPU is needed. Spilled bytes are the stack that ptxas gives a thread (no kernel has
    another use for one).

    Example:
        >>> for kernel, variant, registers, shared, spilled in compiled(90):
        ...     print(kernel, variant, registers, shared, spilled)
    """
    for variant in variants(architecture):
        yield (variant.kernel.__name__, variant.name, *resources(variant, architecture))


def variants(architecture: int) -> Iterator[Variant]:
    """Of every kernel; the launch's sizes are as in solve.py."""
    for dim in DIMS:
        for product, precision, fixed in (
            (torch.bfloat16, "ieee", True),
            (torch.bfloat16, "ieee", False),
            (torch.float16, "ieee", False),
            (torch.float32, "tf32", True),
            (torch.float32, "tf32", False),
            *(((torch.float32, "tf32x3", True), (torch.float32, "tf32x3", False)) if dim in WHOLE else ()),
        ):
            yield forward_variant(architecture, dim, product, precision, fixed)
            yield forward_variant(architecture, dim, product, precision, fixed, batch_keys=True)
        yield from row_variants(dim)
    for dim in WHOLE:
        for precision, product in (("ieee", torch.bfloat16), ("tf32", torch.float32), ("tf32x3", torch.float32)):
            yield forward_variant(architecture, dim, product, precision, False, output=False, batch_keys=True)
        yield forward_variant(architecture, dim, torch.bfloat16, "ieee", True, batch_keys=True, queue=False)
        yield forward_variant(architecture, dim, torch.bfloat16, "ieee", True, batch_keys=True, per_view=True)
        yield forward_variant(architecture, dim, torch.bfloat16, "ieee", True, rows=64)
        yield forward_variant(architecture, dim, torch.bfloat16, "ieee", False, scalars=True)
    yield Variant(advance_kernel, "", {})


def forward_variant(
    architecture: int, dim: int, product: torch.dtype, precision: str, fixed: bool, *, output: bool = True,
    batch_keys: bool = False, queue: bool = True, per_view: bool = False, scalars: bool = False, rows: int = 4096,
) -> Variant:  # fmt: skip
    """The pass in its default configuration, with a queue of a multiple of the tile and any number of batch keys."""
    gpu = plan.Gpu(divmod(architecture, 10), plan.SHARED_MEMORY[architecture], 128)
    config = plan.choose(
        dim=dim, product=product, precision=precision, gpu=gpu, student_rows=rows, teacher_rows=rows, parts=1,
        candidates=(4096, 65536),
    )  # fmt: skip
    name = [f"D={dim}", str(product).removeprefix("torch.")]
    name += [precision] if product == torch.float32 else []
    words = {"queue": queue, "batch keys": batch_keys, "per view": per_view, "no output": not output}
    words |= {"scalars on the device": scalars}
    name += ["fixed shift" if fixed else "running maximum", *(word for word, given in words.items() if given)]
    name += [f"{config.block_rows} rows"]
    constants = {
        "D": dim, "HEAD": config.head, "TAIL": config.tail, "BLOCK_ROWS": config.block_rows,
        "BLOCK_CANDIDATES": config.block_candidates, "PRODUCT": triton_dtype(product), "PRECISION": precision,
        "FIXED": fixed, "OUTPUT": output, "HAS_BATCH": batch_keys, "HAS_QUEUE": queue, "EVEN_BATCH": False,
        "EVEN_QUEUE": True, "PER_VIEW": per_view, "SKIP_OWN_VIEW": per_view,
    }  # fmt: skip
    constants |= {
        name: None for name, given in (("batch_keys", batch_keys), ("queue", queue), ("scalars", scalars)) if not given
    }
    return Variant(sce_forward_kernel, ", ".join(name), constants, product, config.num_warps, config.num_stages)


def row_variants(dim: int) -> Iterator[Variant]:
    """The kernels that take a row or a few at a time."""
    sizes = {"D": dim, "BLOCK_D": plan.next_power_of_2(dim)}
    yield Variant(
        merge_splits_kernel, f"D={dim}", {**sizes, "SPLITS": 64, "SPLITS_AT_A_TIME": plan.SPLITS_AT_A_TIME},
        num_warps=plan.warps_of_a_merge(dim),
    )  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16):
        title = f"D={dim}, {dtype}".replace("torch.", "")
        for words in (
            "gradient, target", "gradient, target, one view", "gradient, target, scalars on the device",
            "gradient, target, per view", "gradient", "target",
        ):  # fmt: skip
            given = {word: word in words for word in ("gradient", "target", "per view", "one view", "scalars")}
            constants: dict[str, Any] = {
                **sizes, "SHARED": True, "PER_VIEW": given["per view"], "FIXED": True, "GRADIENT": given["gradient"],
                "TARGET": given["target"], "ZERO_LOGIT": True, "SAME_VIEWS": not given["one view"],
            }  # fmt: skip
            constants |= {"query_views": 1, "key_views": 1} if given["one view"] else {}  # as Triton specialises a 1
            constants |= {} if given["scalars"] else {"scalars": None}
            constants |= {} if given["per view"] else {"own_statistics": None, "own_outputs": None}
            constants |= {} if given["gradient"] else {"gradient": None}
            warps = plan.warps_of_a_row(dim)
            yield Variant(epilogue_kernel, f"{title}, {words}", constants, dtype, num_warps=warps)
        yield Variant(enqueue_kernel, title, {**sizes, "NORMALIZE": True}, dtype, num_warps=plan.warps_of_a_row(dim))


FLOAT32_POINTERS = {
    "statistics", "outputs", "merged_statistics", "merged_outputs", "shared_statistics", "shared_outputs",
    "own_statistics", "own_outputs", "loss_rows", "target_entropy", "positive_probability", "scalars",
}  # fmt: skip
INPUT_POINTERS = {"query", "key", "batch_keys", "queue", "gradient", "buffer", "rows"}
NUMBERS = {"temperature", "target_temperature", "coefficient"}


def resources(variant: Variant, architecture: int) -> tuple[int, int, int]:
    """Registers a thread, bytes of shared memory a block, bytes spilled a thread."""
    kernel = variant.kernel
    signature, aligned = {}, []
    for position, name in enumerate(kernel.arg_names):
        if name in variant.constants:
            signature[name] = "constexpr"
        elif name in NUMBERS:
            signature[name] = "fp32"
        elif name == "cursor":
            signature[name] = "*i64"
        elif name in FLOAT32_POINTERS or (name in INPUT_POINTERS and kernel is not merge_splits_kernel):
            signature[name] = "*fp32" if name in FLOAT32_POINTERS else POINTERS[variant.dtype]
            aligned.append(position)
        else:
            signature[name] = "i32"
            if name.endswith("stride"):
                aligned.append(position)
    source = ASTSource(
        kernel, signature, variant.constants, {(position,): [["tt.divisibility", 16]] for position in aligned}
    )
    binary = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages},
    )
    registers, stack = _usage(binary.asm["cubin"])
    return registers, binary.metadata.shared, stack


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack of the kernel in a binary, by the cuobjdump that Triton's wheel brings along."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", report)
    if len(found) != 1:
        raise RuntimeError(f"cuobjdump lists {len(found)} kernels in a binary, expected 1:\n{report}")
    return int(found[0][0]), int(found[0][1])
