"""Compile every kernel ahead of time, without a GPU, and report its registers and memory."""

import functools
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sce_fast.kernels import photometric, plan
from sce_fast.kernels.color_jitter import color_jitter_kernel, grey_sums_kernel
from sce_fast.kernels.combine import combine_kernel, combine_splits_kernel
from sce_fast.kernels.enqueue import advance_cursor_kernel, enqueue_kernel
from sce_fast.kernels.forward_pass import forward_pass_kernel
from sce_fast.kernels.gaussian_blur import gaussian_blur_kernel
from sce_fast.kernels.solve import triton_dtype
from sce_fast.util.dtypes import dtype_name

ARCHITECTURES = (80, 90, 100)
DIMS = (64, 128, 256, 384, 512)
# Longer rows in tf32x3 spill some hundred bytes a thread in every shape, since 16 rows of an operand alone fill the
# registers.
TF32X3_DIMS = (128, 256)
# Options that change neither tile sizes nor warps are compiled at this D only.
OPTIONS_DIM = 256
BFLOAT16 = (torch.bfloat16, "ieee")
FLOAT16 = (torch.float16, "ieee")
TF32 = (torch.float32, "tf32")
TF32X3 = (torch.float32, "tf32x3")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# Dtypes of the ring and of the rows that are written to it; the first is what training does on a GPU.
ENQUEUED = (
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
)


@dataclass(frozen=True)
class Variant:
    """A kernel with its constants and with the dtypes of its inputs and of the gradient."""

    kernel: Any
    name: str
    constants: dict[str, Any]
    dtype: torch.dtype = torch.float32
    num_warps: int = 1
    num_stages: int = 3  # Triton's default, which launches without a number take
    other_dtypes: dict[str, torch.dtype] = field(default_factory=dict)  # of inputs that do not have `dtype`
    options: dict[str, Any] = field(default_factory=dict)  # further options of the compiler


class Compiled(NamedTuple):
    """The resources of a compiled variant."""

    architecture: int
    kernel: str
    variant: str
    registers: int  # per thread
    shared_bytes: int  # per block
    spilled_bytes: int  # per thread: the stack that ptxas gives it, which no kernel uses otherwise


def compile_all(architectures: Sequence[int] = ARCHITECTURES, jobs: int = 1) -> Iterator[Compiled]:
    """Compile all variants and yield their resources in order; no GPU is needed.

    Args:
        architectures: Keys of plan.SHARED_MEMORY, such as 90 for sm_90.
        jobs: Processes that compile at the same time.

    Example:
        >>> for kernel in compile_all([90], jobs=2):
        ...     print(kernel.kernel, kernel.variant, kernel.registers, kernel.spilled_bytes)
    """
    tasks = [(architecture, index) for architecture in architectures for index in range(len(variants(architecture)))]
    if jobs == 1:
        yield from map(_compile, tasks)
        return
    # Not forked: torch and Triton have started threads by now.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_compile, tasks)


def _compile(task: tuple[int, int]) -> Compiled:
    """Compile variants(architecture)[index]; the variants themselves cannot be sent between processes."""
    architecture, index = task
    variant = variants(architecture)[index]
    return Compiled(architecture, variant.kernel.__name__, variant.name, *resources(variant, architecture))


@functools.cache
def variants(architecture: int) -> tuple[Variant, ...]:
    """Return the variants of every kernel for an architecture, with launches as in solve.py."""
    return (*forward_variants(architecture), *combine_variants(), *enqueue_variants(), *photometric_variants())


def forward_variants(architecture: int) -> Iterator[Variant]:
    """Yield the variants of the forward pass.

    Every D of DIMS is compiled with each kind of product, with and without batch keys, with a fixed and with a running
    shift. Spills cannot be predicted from a neighbour: each past spill was in only one of these four, and at one D.
    """
    variant = functools.partial(forward_variant, architecture)
    for dim in DIMS:
        for product in (BFLOAT16, TF32, *([TF32X3] if dim in TF32X3_DIMS else [])):
            for fixed_shift in (True, False):
                yield variant(dim, *product, fixed_shift)
                yield variant(dim, *product, fixed_shift, batch_keys=True)
        if dim <= 256:  # for longer rows, float16 takes exactly the registers of bfloat16
            yield variant(dim, *FLOAT16, False, batch_keys=True)
    for product in (BFLOAT16, TF32, TF32X3):
        yield variant(OPTIONS_DIM, *product, False, output=False, batch_keys=True)
    yield variant(OPTIONS_DIM, *BFLOAT16, True, batch_keys=True, queue=False)
    yield variant(OPTIONS_DIM, *BFLOAT16, True, batch_keys=True, per_view=True)
    few_rows = variant(OPTIONS_DIM, *BFLOAT16, True, rows=64)
    if few_rows != variant(OPTIONS_DIM, *BFLOAT16, True):  # sm_80 takes the same blocks for few rows
        yield few_rows
    yield variant(OPTIONS_DIM, *BFLOAT16, False, scalars=True)


def forward_variant(
    architecture: int, dim: int, product: torch.dtype, precision: str, fixed_shift: bool, *, output: bool = True,
    batch_keys: bool = False, queue: bool = True, per_view: bool = False, scalars: bool = False, rows: int = 4096,
) -> Variant:  # fmt: skip
    """Return the forward pass in its default launch, for a queue of whole tiles and any number of batch keys.

    All inputs have the dtype of the products: solve.py casts those that have another.
    """
    gpu = plan.Gpu(divmod(architecture, 10), plan.SHARED_MEMORY[architecture], 128)
    launch = plan.plan_forward_pass(
        dim=dim, product=product, precision=precision, gpu=gpu, student_rows=rows, teacher_rows=rows,
        batch_key_views=1, candidates=(4096, 65536),
    )  # fmt: skip
    name = [f"D={dim}", dtype_name(product)]
    name += [precision] if product == torch.float32 else []
    words = {"queue": queue, "batch keys": batch_keys, "per view": per_view, "no output": not output}
    words |= {"scalars on the device": scalars}
    name += ["fixed shift" if fixed_shift else "running shift", *(word for word, given in words.items() if given)]
    name += [f"{launch.block_rows} rows"]
    constants = {
        "D": dim, "HEAD": launch.head, "TAIL": launch.tail, "BLOCK_ROWS": launch.block_rows,
        "BLOCK_CANDIDATES": launch.block_candidates, "PRODUCT": triton_dtype(product), "PRECISION": precision,
        "ROUND_PAIRS": plan.rounds_in_pairs(gpu.capability, launch.block_candidates),
        "FIXED_SHIFT": fixed_shift, "OUTPUT": output, "HAS_BATCH": batch_keys, "HAS_QUEUE": queue, "EVEN_BATCH": False,
        "EVEN_QUEUE": True, "PER_VIEW": per_view, "SKIP_OWN_VIEW": per_view,
    }  # fmt: skip
    constants |= {
        name: None for name, given in (("batch_keys", batch_keys), ("queue", queue), ("scalars", scalars)) if not given
    }
    return Variant(forward_pass_kernel, ", ".join(name), constants, product, launch.num_warps, launch.num_stages)


def _named(dtypes: dict[str, torch.dtype]) -> list[str]:
    return [f"{name} {dtype_name(dtype)}" for name, dtype in dtypes.items()]


def combine_variants() -> Iterator[Variant]:
    """Yield the variants of the two kernels that combine partials."""
    for dim in DIMS:
        sizes = {"D": dim, "BLOCK_D": plan.next_power_of_2(dim)}
        yield Variant(
            combine_splits_kernel, f"D={dim}", {**sizes, "SPLITS": 64, "SPLITS_AT_A_TIME": plan.SPLITS_AT_A_TIME},
            num_warps=plan.warps_of_splits(dim),
        )  # fmt: skip
        for dtype in (torch.float32, torch.bfloat16):
            yield combine_variant(dim, dtype, "gradient, target")
            yield combine_variant(dim, dtype, "gradient, target, per view")
    for dtype in (torch.float32, torch.bfloat16):
        for options in ("gradient, target, one view", "gradient, target, scalars on the device", "gradient", "target"):
            yield combine_variant(OPTIONS_DIM, dtype, options)
    for dim in (OPTIONS_DIM, DIMS[-1]):
        for dtype, key in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
            yield combine_variant(dim, dtype, "gradient, target", {"key": key})


def combine_variant(
    dim: int, dtype: torch.dtype, options: str, other_dtypes: dict[str, torch.dtype] | None = None
) -> Variant:
    """Return combine_kernel with the options among gradient, target, per view, one view, scalars."""
    given = {word: word in options for word in ("gradient", "target", "per view", "one view", "scalars")}
    constants: dict[str, Any] = {
        "D": dim, "BLOCK_D": plan.next_power_of_2(dim), "SHARED": True, "PER_VIEW": given["per view"],
        "FIXED_SHIFT": True, "GRADIENT": given["gradient"], "TARGET": given["target"], "ZERO_LOGIT": True,
        "SAME_VIEWS": not given["one view"],
    }  # fmt: skip
    constants |= {"query_views": 1, "key_views": 1} if given["one view"] else {}  # as Triton specialises a 1
    constants |= {} if given["scalars"] else {"scalars": None}
    constants |= {} if given["per view"] else {"view_partials": None, "view_outputs": None}
    constants |= {} if given["gradient"] else {"gradient": None}
    others = other_dtypes or {}
    name = ", ".join([f"D={dim}", dtype_name(dtype), options, *_named(others)])
    return Variant(combine_kernel, name, constants, dtype, num_warps=plan.warps_of_a_row(dim), other_dtypes=others)


def enqueue_variants() -> Iterator[Variant]:
    """Yield the variants of the two kernels that write the queue."""
    for dim in DIMS:
        for ring, rows in ENQUEUED if dim == OPTIONS_DIM else ENQUEUED[:1]:
            others = {} if ring == rows else {"new_rows": rows}
            name = ", ".join([f"D={dim}", dtype_name(ring), *_named(others)])
            constants = {"D": dim, "BLOCK_D": plan.next_power_of_2(dim), "NORMALIZE": True}
            warps = plan.warps_of_a_row(dim)
            yield Variant(enqueue_kernel, name, constants, ring, num_warps=warps, other_dtypes=others)
    yield Variant(advance_cursor_kernel, "", {})


def photometric_variants() -> Iterator[Variant]:
    """Yield the variants of the kernels that finish views: images and clips, each dtype, and the widest blur."""
    variant = functools.partial(Variant, options=photometric.EXACT)
    sums, pixels = photometric.SUMS_AT_A_TIME, photometric.PIXELS_AT_A_TIME
    # As Triton specialises a 1: one frame a sample, and one block of sums in an image of up to 45 × 45 pixels.
    images: dict[str, Any] = {"frames_per_sample": 1}
    tiny = {**images, "blocks": 1}
    for name, ones in (("clips", {}), ("images", images), ("tiny images", tiny)):
        yield variant(grey_sums_kernel, name, {"SUMS": sums, **ones}, num_warps=photometric.SUM_WARPS)
    constants: dict[str, Any] = {"BLOCK": pixels, "SUMS": photometric.sums_block(16), **tiny}
    yield variant(color_jitter_kernel, "tiny images", constants, num_warps=photometric.PIXEL_WARPS)
    for dtype in photometric.DTYPES:
        kind = dtype_name(dtype)
        constants = {"BLOCK": pixels, "SUMS": photometric.sums_block(400)}
        for name, more in (
            ("", {}),
            (", no blur", {"jittered": None}),
            (", flip alone", {"jittered": None, "sums": None}),
        ):
            yield variant(color_jitter_kernel, f"{kind}{name}", constants | more, dtype, photometric.PIXEL_WARPS)
        for radius in (6, photometric.LARGEST_RADIUS):
            constants = {
                "RADIUS": radius, "REFLECTIONS": photometric.reflections(radius, 224),
                "ROWS": photometric.BLURRED_ROWS, "BLOCK": photometric.blur_block(radius),
            }  # fmt: skip
            yield variant(gaussian_blur_kernel, f"{kind}, radius {radius}", constants, dtype, photometric.BLUR_WARPS)


FLOAT32_POINTERS = {
    "partials", "outputs", "combined_partials", "combined_outputs", "shared_partials", "shared_outputs",
    "view_partials", "view_outputs", "loss_rows", "target_entropy", "positive_probability", "scalars",
}  # fmt: skip
INPUT_POINTERS = {"query", "key", "batch_keys", "queue", "gradient", "keys", "new_rows", "views"}
# Pointers to anything else: their type, and whether the launch aligns them.
OTHER_POINTERS = {
    "cursor": ("*i64", False), "pixels": ("*u8", True), "jittered": ("*u8", True), "sums": ("*fp32", True),
    "settings": ("*fp32", False), "weights": ("*fp32", False),
}  # fmt: skip
UNALIGNED_STRIDES = {"settings_stride", "weights_stride"}
NUMBERS = {
    "temperature", "target_temperature", "coefficient", "mean_r", "mean_g", "mean_b", "scale_r", "scale_g", "scale_b"
}  # fmt: skip


def resources(variant: Variant, architecture: int) -> tuple[int, int, int]:
    """Compile a variant; return registers per thread, bytes of shared memory per block, bytes spilled per thread."""
    binary = compile_variant(variant, architecture)
    registers, stack = usage(binary.asm["cubin"])
    return registers, binary.metadata.shared, stack


def compile_variant(variant: Variant, architecture: int) -> Any:
    """Return Triton's result, whose `asm` holds "ttgir", "ptx" and "cubin"."""
    kernel = variant.kernel
    signature: dict[str, str] = {}
    aligned: list[int] = []
    for position, name in enumerate(kernel.arg_names):
        if name in variant.constants:
            signature[name] = "constexpr"
        elif name in NUMBERS:
            signature[name] = "fp32"
        elif name in OTHER_POINTERS:
            signature[name], is_aligned = OTHER_POINTERS[name]
            aligned += [position] if is_aligned else []
        elif name in FLOAT32_POINTERS or name in INPUT_POINTERS:
            dtype = torch.float32 if name in FLOAT32_POINTERS else variant.other_dtypes.get(name, variant.dtype)
            signature[name] = POINTERS[dtype]
            aligned.append(position)
        else:
            signature[name] = "i32"
            if name.endswith("stride") and name not in UNALIGNED_STRIDES:
                aligned.append(position)
    source = ASTSource(
        kernel, signature, variant.constants, {(position,): [["tt.divisibility", 16]] for position in aligned}
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages, **variant.options},
    )


def disassemble(cubin: bytes) -> str:
    """Return the machine code of a binary as text."""
    return _cuobjdump(cubin, "-sass")


def usage(cubin: bytes) -> tuple[int, int]:
    """Return registers and stack bytes of the kernel in a binary."""
    report = _cuobjdump(cubin, "-res-usage")
    found = re.findall(r"REG:(\d+) STACK:(\d+)", report)
    if len(found) != 1:
        raise RuntimeError(f"cuobjdump lists {len(found)} kernels in a binary, expected 1:\n{report}")
    return int(found[0][0]), int(found[0][1])


def _cuobjdump(cubin: bytes, option: str) -> str:
    """Return what the cuobjdump of Triton's wheel prints about a binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout
