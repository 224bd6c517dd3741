"""A pytest plugin that turns tests into items of supervised processes.

    python -m pytest -p benchmarks.acceptance.pytest_events --events FILE --shard 0/4 -m gpu tests

Each process runs one shard of the tests. If a test crashes or hangs, the next start skips the settled tests. A process
whose GPU is unusable after a failed test ends at once.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from .supervise import GPU_LOST, Events, shortened


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("acceptance")
    group.addoption("--events", type=Path, required=True, help="file for the outcome of each test")
    group.addoption("--shard", default="0/1", help="INDEX/COUNT of this process")


def pytest_configure(config: pytest.Config) -> None:
    shard, count = map(int, config.getoption("--shard").split("/"))
    config.pluginmanager.register(Recorder(Events(config.getoption("--events")), shard, count), "acceptance")


class Recorder:
    """Writes the outcome of each test to the event file."""

    def __init__(self, events: Events, shard: int, count: int) -> None:
        self.events, self.shard, self.count = events, shard, count
        self.reports: list[pytest.TestReport] = []  # set-up, call and tear-down of the current test
        self.import_errors: dict[str, str] = {}  # by test file

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.import_errors[report.nodeid] = str(report.longrepr).strip().splitlines()[-1]

    @pytest.hookimpl(trylast=True)  # after -m and -k
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep one contiguous shard: tests of the same file share what its fixtures build."""
        first, end = (index * len(items) // self.count for index in (self.shard, self.shard + 1))
        shard = items[first:end]
        files = list(self.import_errors) if self.shard == 0 else []
        pending = set(self.events.begin([*files, *(item.nodeid for item in shard)]))
        for file in files:
            if file in pending:
                reason = shortened(self.import_errors[file])
                missing = "No module named" in reason
                self.events.settle(file, "not run" if missing else "failed", f"cannot be imported: {reason}")
        chosen = [item for item in shard if item.nodeid in pending]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.reports = []
        self.events.start(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        failed = next((report for report in self.reports if report.failed), None)
        skipped = next((report for report in self.reports if report.skipped), None)
        if failed is not None:
            print(f"\n{nodeid}\n{failed.longreprtext}", flush=True)
            self.events.settle(nodeid, "failed", shortened(reason_of(failed)))
            if _gpu_is_lost():
                os._exit(GPU_LOST)
        elif skipped is not None:
            self.events.settle(nodeid, "not run", shortened(reason_of(skipped)))
        else:
            self.events.settle(nodeid, "passed")


def reason_of(report: pytest.TestReport) -> str:
    """Return the message of a failure or a skip."""
    about: Any = report.longrepr
    if isinstance(about, tuple):  # (file, line, reason) of a skip
        return str(about[2]).removeprefix("Skipped: ")
    crash = getattr(about, "reprcrash", None)
    return crash.message if crash is not None else str(about)


def _gpu_is_lost() -> bool:
    if "torch" not in sys.modules:
        return False
    from sce_fast.benchmarks.measure import gpu_is_lost

    return gpu_is_lost()
