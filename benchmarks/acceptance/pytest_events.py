"""A plugin for pytest: tests as items of a supervised process, some of them for each of several processes.

    python -m pytest -p benchmarks.acceptance.pytest_events --events FILE --shard 0/4 -m gpu tests

A test that crashes or hangs costs no other its answer: the next start leaves out what is settled. A process whose GPU
cannot be used any more after a failed test ends at once.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from .supervise import SPOILT, Events, first_lines


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("acceptance")
    group.addoption("--events", type=Path, required=True, help="file for what becomes of each test")
    group.addoption("--shard", default="0/1", help="this process and how many there are")


def pytest_configure(config: pytest.Config) -> None:
    shard, count = map(int, config.getoption("--shard").split("/"))
    config.pluginmanager.register(Recorder(Events(config.getoption("--events")), shard, count), "acceptance")


class Recorder:
    """Tells what becomes of each test."""

    def __init__(self, events: Events, shard: int, count: int) -> None:
        self.events, self.shard, self.count = events, shard, count
        self.reports: list[pytest.TestReport] = []  # of the test at work: set-up, call, tear-down
        self.not_imported: dict[str, str] = {}  # file → why

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.not_imported[report.nodeid] = str(report.longrepr).strip().splitlines()[-1]

    @pytest.hookimpl(trylast=True)  # after -m and -k
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """A stretch of the tests for each process: those of one file share what its fixtures build."""
        here = range(self.shard * len(items) // self.count, (self.shard + 1) * len(items) // self.count)
        mine = [items[i] for i in here]
        files = list(self.not_imported) if self.shard == 0 else []
        pending = set(self.events.begin([*files, *(item.nodeid for item in mine)]))
        for file in files:
            if file in pending:
                reason = first_lines(self.not_imported[file])
                missing = "No module named" in reason
                self.events.settle(file, "not run" if missing else "failed", f"cannot be imported: {reason}")
        chosen = [item for item in mine if item.nodeid in pending]
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
            self.events.settle(nodeid, "failed", first_lines(reason_of(failed)))
            if _spoilt():
                os._exit(SPOILT)
        elif skipped is not None:
            self.events.settle(nodeid, "not run", first_lines(reason_of(skipped)))
        else:
            self.events.settle(nodeid, "passed")


def reason_of(report: pytest.TestReport) -> str:
    """The message of a failure or a skip."""
    about: Any = report.longrepr
    if isinstance(about, tuple):  # (file, line, reason) of a skip
        return str(about[2]).removeprefix("Skipped: ")
    crash = getattr(about, "reprcrash", None)
    return crash.message if crash is not None else str(about)


def _spoilt() -> bool:
    if "torch" not in sys.modules:
        return False
    from sce_fast.benchmarks.measure import context_is_spoilt

    return context_is_spoilt()
