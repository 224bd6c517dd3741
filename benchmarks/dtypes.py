"""Measure what each mix of dtypes costs on a GPU: machine code without a GPU, time with one.

sce-fast bench dtypes                                             tables of docs/loss.md; python -m benchmarks.dtypes
"""

import re
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sce_fast import sce_loss
from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.measure import graph_seconds, stage_seconds
from sce_fast.benchmarks.peers import AbsentError
from sce_fast.benchmarks.record import write_record
from sce_fast.kernels.solve import dot_precision
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.parity import Inputs, MatmulPrecision, float32_precision, make_inputs
from sce_fast.loss.problem import checked_problem
from sce_fast.util.dtypes import dtype_name
from sce_fast.util.terminal import progress_bar

# Tensor-core instructions of SASS: sm_80 and earlier code, Hopper, Blackwell.
PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA")
SHARED_READS = ("LDS", "LDSM")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(.*);")
BATCH_KEYS = 1024  # rows of a mix that has batch keys


@dataclass(frozen=True)
class Mix:
    """The dtypes of a call, and torch's precision of float32 products."""

    rows: torch.dtype  # query and key
    queue: torch.dtype
    precision: MatmulPrecision = "highest"
    batch_keys: torch.dtype | None = None  # None for no batch keys

    @property
    def product(self) -> torch.dtype:
        """The dtype of the products: that of the candidates, or float32 where they differ."""
        return self.queue if self.batch_keys in (None, self.queue) else torch.float32

    @property
    def triton_precision(self) -> str:
        """The input_precision of tl.dot."""
        with float32_precision(self.precision):
            return dot_precision(self.product)

    @property
    def product_name(self) -> str:
        """The dtype of the products, for float32 the kind of tensor-core products that it takes."""
        return self.triton_precision if self.product == torch.float32 else dtype_name(self.product)

    @property
    def fixed_shift(self) -> bool:
        """Whether the kernel takes a fixed shift at the default temperatures."""
        return self.product != torch.float16

    def __str__(self) -> str:
        names = [f"rows {dtype_name(self.rows)}", f"queue {dtype_name(self.queue)}"]
        names += [] if self.batch_keys is None else [f"batch keys {dtype_name(self.batch_keys)}"]
        return ", ".join(names + ([self.product_name] if self.product == torch.float32 else []))

    def inputs(self, n: int, k: int, d: int, device: str) -> Inputs:
        """Return random unit rows in these dtypes."""
        made = make_inputs("random", n=n, k=k, d=d, m=0 if self.batch_keys is None else max(n, BATCH_KEYS))
        assert made.queue is not None
        batch_keys = None if self.batch_keys is None else made.to(self.batch_keys, device).batch_keys
        rows = made.to(self.rows, device)
        return Inputs(rows.query, rows.key, made.queue.to(device, self.queue), batch_keys)


# The first is what a recipe trains with on a GPU, the second what it trained with before.
MIXES = (
    Mix(torch.float32, torch.bfloat16),
    Mix(torch.float32, torch.float32),
    Mix(torch.float32, torch.float32, "high"),
    Mix(torch.float32, torch.float16),
    Mix(torch.bfloat16, torch.bfloat16),
    Mix(torch.float32, torch.bfloat16, "high", torch.float32),
)


@dataclass(frozen=True)
class Code:
    """The machine code of a mix's forward pass for one architecture; counts are those of the loop over the tiles."""

    architecture: int
    mix: str
    block_rows: int
    block_candidates: int
    warps: int
    registers: int
    spilled_bytes: int
    product: str  # the tensor-core instructions
    products: int
    shared_reads: int  # by instructions; HGMMA and UTCHMMA read operands themselves
    exponentials: int
    instructions: int

    @property
    def instructions_per_pair(self) -> float:
        """Instructions of a thread for each pair of a row and a candidate: 32 lanes share a warp's instruction."""
        return 32 * self.warps * self.instructions / (self.block_rows * self.block_candidates)


def main(
    n: int = 1024,
    k: int = 65536,
    d: int = 256,
    architectures: tuple[int, ...] = (80, 90, 100),
    out: Path | None = None,
) -> None:
    """Compile the Triton forward pass for each mix of dtypes, and on a GPU also measure loss and gradient.

    The counts are those of the loop over the candidates, of which each run multiplies a tile with a block of rows.

    Args:
        n: Number of rows.
        k: Queue length.
        d: Dimension.
        architectures: 80 for sm_80; 80, 90 and 100 are compiled for.
        out: JSON file for the record.
    """
    here, codes = machine(), []
    with progress_bar(len(MIXES) * len(architectures), "Compiling", unit="kernel") as bar:
        for architecture in architectures:
            for mix in MIXES:
                codes.append(code_of(mix, d, architecture))
                bar.update()
    times = [measured(mix, n, k, d, "cuda") for mix in MIXES] if torch.cuda.is_available() else []
    print(traffic_table(n, k, d, times))
    print("\n" + code_table(codes))
    if out is not None:
        sizes = {"n": n, "k": k, "d": d}
        results = {"code": [asdict(code) for code in codes], "times": [asdict(time) for time in times]}
        write_record(out, {"machine": here, "sizes": sizes, **results})


# ---------------------------------------------------------------------------------------------- machine code


def code_of(mix: Mix, d: int, architecture: int) -> Code:
    """Compile the forward pass of a mix at dimension D and count the instructions of its loop over the candidates.

    With batch keys, which have a loop of their own, the loop over the queue is counted.
    """
    from sce_fast.kernels.compile_offline import compile_variant, disassemble, forward_variant, usage

    has_batch = mix.batch_keys is not None
    variant = forward_variant(architecture, d, mix.product, mix.triton_precision, mix.fixed_shift, batch_keys=has_batch)
    cubin = compile_variant(variant, architecture).asm["cubin"]
    registers, spilled = usage(cubin)
    loop = loops(disassemble(cubin))[-1]
    kinds = Counter(name.partition(".")[0] for name in loop)
    return Code(
        architecture, str(mix), variant.constants["BLOCK_ROWS"], variant.constants["BLOCK_CANDIDATES"],
        variant.num_warps, registers, spilled,
        product=", ".join(sorted({name for name in loop if name.partition(".")[0] in PRODUCTS})),
        products=sum(kinds[kind] for kind in PRODUCTS), shared_reads=sum(kinds[kind] for kind in SHARED_READS),
        exponentials=sum(name.startswith("MUFU.EX2") for name in loop), instructions=len(loop),
    )  # fmt: skip


def loops(sass: str) -> list[list[str]]:
    """Return the instructions of each loop that multiplies, in the order of the code; loops inside it are part of it.

    Both sides of a branch are counted. The waits that ptxas places behind the last EXIT are not: they branch back too.
    """
    code = [(int(address, 16), name, rest) for address, name, rest in INSTRUCTION.findall(sass)]
    last = max((address for address, name, _ in code if name == "EXIT"), default=code[-1][0])
    spans: set[tuple[int, int]] = set()
    for address, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name.startswith("BRA") and target and int(target[1], 16) < address < last:
            spans.add((int(target[1], 16), address))
    outer = [s for s in spans if not any(o != s and o[0] <= s[0] and s[1] <= o[1] for o in spans)]
    bodies = [[name for address, name, _ in code if start <= address <= end] for start, end in sorted(outer)]
    return [body for body in bodies if any(name.partition(".")[0] in PRODUCTS for name in body)]


# ---------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Time:
    """The time of loss and gradient with one mix of dtypes."""

    mix: str
    backend: str
    seconds: float  # a call, median over turns
    graph: float | None  # GPU seconds, replayed from a CUDA graph; None on a CPU


def measured(mix: Mix, n: int, k: int, d: int, device: str, backend: str = "triton", rounds: int = 7) -> Time:
    """Measure loss and gradient of a mix.

    Raises:
        AbsentError: the backend refuses the inputs; the message is the reason.
    """
    inputs = mix.inputs(n, k, d, device)
    leaf = inputs.query.detach().requires_grad_()
    problem = checked_problem(leaf, inputs.key, inputs.queue, batch_keys=inputs.batch_keys)
    if (reason := BACKENDS[backend].refuses(problem)) is not None:
        raise AbsentError(reason)

    def run() -> None:
        loss = sce_loss(leaf, inputs.key, inputs.queue, batch_keys=inputs.batch_keys, backend=backend)
        torch.autograd.grad(loss, leaf)

    def call(mark: Callable[[], None]) -> None:
        mark()
        run()

    with float32_precision(mix.precision):
        stage_seconds(call, device)  # compiles
        seconds = statistics.median(stage_seconds(call, device)[0] for _ in range(rounds))
        return Time(str(mix), backend, seconds, graph_seconds(run) if device == "cuda" else None)


# ---------------------------------------------------------------------------------------------- tables


def traffic_table(n: int, k: int, d: int, times: list[Time]) -> str:
    """Return what each mix reads and casts, with its time if it was measured, as a Markdown table."""
    lines = [
        f"| query and key | queue | batch keys | products | queue, MB | casts, MB | µs at N {n}, K {k}, D {d} |",
        "|---|---|---|---|--:|--:|---|",
    ]
    graphs = {time.mix: time.graph for time in times}
    for mix in MIXES:
        seconds = graphs.get(str(mix))
        cells = [dtype_name(mix.rows), dtype_name(mix.queue)]
        cells += ["–" if mix.batch_keys is None else dtype_name(mix.batch_keys), mix.product_name]
        cells += [f"{k * d * mix.queue.itemsize / 1e6:.1f}", f"{cast_bytes(mix, n, k, d) / 1e6:.1f}"]
        cells += ["not yet measured" if seconds is None else f"{1e6 * seconds:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cast_bytes(mix: Mix, n: int, k: int, d: int) -> int:
    """Return the bytes that casts of inputs to the dtype of the products read and write."""
    inputs = [(mix.rows, 2 * n), (mix.queue, k)]
    inputs += [] if mix.batch_keys is None else [(mix.batch_keys, max(n, BATCH_KEYS))]
    return sum(rows * d * (dtype.itemsize + mix.product.itemsize) for dtype, rows in inputs if dtype != mix.product)


def code_table(codes: list[Code]) -> str:
    """Return the machine code of each mix as a Markdown table; mixes with the same kernel share a row."""
    lines = [
        "| | mix | tile, rows × candidates | registers (spilled bytes) | tensor-core instruction | in the loop: "
        "products, reads of shared memory, EX2, all | a thread's instructions per pair |",
        "|---|---|---|--:|---|---|--:|",
    ]
    rows: dict[tuple[Any, ...], list[str]] = {}
    for code in codes:
        row = (
            f"sm_{code.architecture}", f"{code.block_rows} × {code.block_candidates}",
            f"{code.registers} ({code.spilled_bytes})", code.product,
            f"{code.products}, {code.shared_reads}, {code.exponentials}, {code.instructions}",
            f"{code.instructions_per_pair:.0f}",
        )  # fmt: skip
        rows.setdefault(row, []).append(code.mix)
    for (architecture, *cells), mixes in rows.items():
        lines.append(f"| {' | '.join([architecture, '; '.join(mixes), *cells])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
