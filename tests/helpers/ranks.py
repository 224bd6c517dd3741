"""Run a function in processes of its own: as the ranks of a group, or alone, to be killed."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from sce_fast.cli import main
from sce_fast.distributed import process_group


@cache
def _context() -> ForkServerContext:
    """Fork processes from one that has imported everything, so that a start takes a fraction of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.preload"])
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(paths)):  # the server does not take over sys.path
        forkserver.ensure_running()
    return context


def start(function: Callable[..., object], *arguments: Any, ranks: int = 1) -> Sequence[BaseProcess]:
    """Start function(*arguments) in each of the ranks, with the environment of torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        _context().Process(target=_run, args=(rank, ranks, port, function, arguments), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def join(processes: Sequence[BaseProcess], timeout: float = 120) -> list[int | None]:
    """Return the exit codes; a process that does not end in time is killed, and its code is None."""
    codes = []
    for process in processes:
        process.join(timeout)
        codes.append(process.exitcode)
    for process in processes:
        process.kill()
    return codes


def run(function: Callable[..., object], *arguments: Any, ranks: int = 1) -> None:
    """Run function(*arguments) in the ranks; each has to end with status 0."""
    codes = join(start(function, *arguments, ranks=ranks))
    assert codes == [0] * ranks, f"exit codes of the ranks: {codes} (None: killed after the time limit)"


def run_in_group(function: Callable[..., object], *arguments: Any, ranks: int = 1) -> None:
    """Run function(group, *arguments) in the ranks, inside their process group on the CPU.

    What the function holds is freed before the group ends, as sce_fast.distributed.process_group needs it.
    """
    run(_call_in_group, function, arguments, ranks=ranks)


def _call_in_group(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    with process_group(torch.device("cpu")) as group:
        function(group, *arguments)


def command(
    words: Sequence[object], output: Path, fault: Callable[[], object] | None = None, ranks: int = 1
) -> list[int | None]:
    """Run `sce-fast WORDS` in each of the ranks; return the exit codes. The output of rank r goes to OUTPUT.r.

    fault() is called first, in the same process, where it may break something.
    """
    return join(start(_command, [str(word) for word in words], output, fault, ranks=ranks))


def _command(words: list[str], output: Path, fault: Callable[[], object] | None) -> None:
    told = os.open(f"{output}.{os.environ.get('RANK', 0)}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(told, stream)
    if fault is not None:
        fault()
    main(words)


def _run(rank: int, ranks: int, port: int, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    function(*arguments)
