"""What tests cost in CPU time, and the guard on `make quick`: hooks that conftest.py hands to pytest.

`make quick` leaves out tests with one of the marks DEAR. Whoever forgets the mark is told by a failure: a test without
it may not start an interpreter, nor take more CPU time than BUDGET.
"""

from __future__ import annotations

import multiprocessing.util
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests import fork_server, machine_speed

DEAR = ("process", "browser", "slow", "e2e")
BUDGET = 2.0  # seconds on an idle core for each phase of a test; fixtures of the session count with their first test
STARTING = ("python", "bash", "sh", "chromedriver")
IMPORTS = 40  # a phase in which this many modules are new is the first of its kind, and no measure of its test
SLOWEST = 10
MISSING_MARK = "missing mark"

# Tests that take these fixtures get the mark by themselves.
MARKED_FIXTURES = {"browser": "browser", "distilled": "slow", "segmenting": "slow"}

_started: list[str] = []  # interpreters that this test has started


def configure(config: pytest.Config) -> None:
    """Notice every start of an interpreter from here on. For pytest_configure."""
    start, spawn = subprocess.Popen.__init__, multiprocessing.util.spawnv_passfds

    def noted(process: Any, arguments: Any, *further: Any, **named: Any) -> None:
        program = arguments if isinstance(arguments, (str, os.PathLike)) else next(iter(arguments))
        started = Path(os.fsdecode(program)).name.startswith(STARTING)
        if started and "codec_worker" not in str(arguments):  # it stays warm for the tests after this one
            _started.append(str(arguments))
        start(process, arguments, *further, **named)

    def spawned(path: Any, arguments: Any, descriptors: Any) -> int:
        _started.append(f"multiprocessing: {arguments}")
        return spawn(path, arguments, descriptors)

    subprocess.Popen.__init__ = noted  # type: ignore[method-assign]
    multiprocessing.util.spawnv_passfds = spawned  # type: ignore[assignment]

    def end() -> None:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]
        multiprocessing.util.spawnv_passfds = spawn

    config.add_cleanup(end)


def mark_by_fixtures(item: pytest.Item) -> None:
    """For pytest_collection_modifyitems."""
    for fixture in MARKED_FIXTURES.keys() & set(getattr(item, "fixturenames", ())):
        item.add_marker(MARKED_FIXTURES[fixture])


def is_dear(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in DEAR)


def measured(item: pytest.Item, phase: str) -> Generator[None, Any, Any]:
    """Around setup, call and teardown: note the CPU time in the item, fail a quick test that is not quick."""
    before, modules = cpu_seconds(), len(sys.modules)
    _started.clear()
    result = yield
    seconds = cpu_seconds() - before
    item.user_properties.append((f"cpu {phase}", seconds))
    if not is_dear(item):
        if _started:
            _report_missing_mark(item, f"mark it as process: it starts {_started[0]}")
        if seconds > BUDGET * machine_speed.slower() and len(sys.modules) - modules < IMPORTS:
            budget = f"a quick test may take {BUDGET:.0f} s on an idle core"
            _report_missing_mark(item, f"mark it as slow: {phase} took {seconds:.1f} s of CPU; {budget}")
    return result


def _report_missing_mark(item: pytest.Item, text: str) -> None:
    """Fail a run that selects by marks, as `make quick` does; a run of everything lists the test at its end."""
    if item.config.option.markexpr:
        pytest.fail(text, pytrace=False)
    item.user_properties.append((MISSING_MARK, text))


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


class Costs:
    """CPU seconds by test, added up from the reports of all workers."""

    def __init__(self) -> None:
        self.by_test: dict[str, float] = {}
        self.marks: dict[str, str] = {}
        self.unmarked: list[str] = []

    def add(self, report: pytest.TestReport) -> None:
        """For pytest_runtest_logreport."""
        if report.when == "teardown":
            missing = (text for name, text in report.user_properties if name == MISSING_MARK)
            self.unmarked += [f"{report.nodeid}: {text}" for text in missing]
            seconds = sum(value for name, value in report.user_properties if name.startswith("cpu "))  # type: ignore
            self.by_test[report.nodeid] = self.by_test.get(report.nodeid, 0.0) + float(seconds)
            self.marks[report.nodeid] = next((name for name in DEAR if name in report.keywords), "quick")

    def write(self, write_line: Callable[[str], None]) -> None:
        """A line with the sums, and the slowest tests."""
        started = fork_server.cpu_seconds()
        sums = dict.fromkeys(("quick", *DEAR), 0.0)
        for test, seconds in self.by_test.items():
            self.by_test[test] = seconds + started.pop(test, 0.0)
            sums[self.marks[test]] += self.by_test[test]
        total = cpu_seconds() + fork_server.server_cpu_seconds()
        sums["imports and collection"] = max(0.0, total - sum(sums.values()))
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in sums.items() if seconds >= 0.5)
        write_line(f"CPU seconds: {parts}; an idle core would take {1 / machine_speed.slower():.2f} of it")
        for line in self.unmarked:
            write_line(line)
        slowest = sorted(self.by_test.items(), key=lambda pair: -pair[1])[:SLOWEST]
        for test, seconds in slowest:
            if seconds >= 1:
                write_line(f"{seconds:7.1f} s  {self.marks[test]:8} {test}")
