"""Time and parity of the loss for each mix of dtypes: what a float32 queue costs on this GPU, and a 16-bit one.

python -m benchmarks.acceptance.dtypes --device cuda --events FILE
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from sce_fast.benchmarks.acceptance.supervise import Events, Failure, NotRun
from sce_fast.benchmarks.dtypes import MIXES, Mix, measured
from sce_fast.benchmarks.measure import gpu_is_lost
from sce_fast.benchmarks.peers import AbsentError
from sce_fast.loss.parity import compare, float32_precision
from sce_fast.util.dtypes import dtype_name

BACKENDS = {"cuda": ("triton", "cuda"), "cpu": ("cpu",)}
SIZES = {"cuda": {"n": 1024, "k": 65536, "d": 256}, "cpu": {"n": 8, "k": 256, "d": 32}}
PARITY_SIZES = {"cuda": {"n": 256, "k": 16384, "d": 256}, "cpu": {"n": 8, "k": 256, "d": 32}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    options = parser.parse_args()
    events = Events(options.events)
    events.run(dtype_items(options.device, events), gpu_is_lost)


def dtype_items(device: Literal["cuda", "cpu"], events: Events) -> dict[str, Callable[[], Any]]:
    """Return one item for each mix."""
    return {str(mix): partial(item, mix, device, partial(events.progress, str(mix))) for mix in MIXES}


def item(mix: Mix, device: str, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Return the times and the largest error, as a share of the allowed error, of every backend that serves a mix."""
    results, refusals, failures = [], [], []
    for backend in BACKENDS[device]:
        on_progress(backend)
        try:
            time = measured(mix, **SIZES[device], device=device, backend=backend)
        except AbsentError as reason:
            refusals.append(f"{backend}: {reason}")
            continue
        inputs = mix.inputs(**PARITY_SIZES[device], device=device)
        with float32_precision(mix.precision):
            parity = compare(backend, inputs, mix.product)
        results.append({**asdict(time), "worst": parity.worst})
        failures += [f"{backend}: {name} at {parity.worst:.3g} of the allowed error" for name in parity.failures]
    if not results:
        raise NotRun("; ".join(refusals))
    names = {"rows": dtype_name(mix.rows), "queue": dtype_name(mix.queue), "product": mix.product_name}
    flags = {"default": mix == MIXES[0], "may_be_default": may_be_default(mix)}
    data = {**names, **flags, "results": results, "sizes": SIZES[device]}
    if failures:
        raise Failure("; ".join(failures), data)
    return data


def may_be_default(mix: Mix) -> bool:
    """Return whether a recipe can have this mix without further settings: float32 rows, torch's default precision."""
    return mix.rows == torch.float32 and mix.batch_keys is None and mix.precision == "highest"


if __name__ == "__main__":
    main()
