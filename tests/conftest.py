"""What every test may use, the order in which tests run, their time limits, and what they cost (see cost.py)."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests import cost, fork_server, machine_speed
from tests.browser import browser  # noqa: F401, a fixture for all tests

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_dir() -> Path:
    """The folder of reference models and data beside the checkout; it may not exist."""
    return REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference folder; skips the test where it is not there."""
    folder = shared_dir()
    if not folder.is_dir():
        pytest.skip(f"reference data not found: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InternVL folder with random weights, a megabyte."""
    from vesselseg.models.tiny_base import write_tiny_base

    folder = tmp_path_factory.mktemp("base") / "tiny_internvl"
    write_tiny_base(folder)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Settled before anything of the package is imported.

    transformers copies an exported folder's code into one folder of the user's, file by file and by the folder's last
    name, and imports it from there: workers (-n) that share it would import what another one is writing.
    """
    # nothing above imports torch; workers (-n) with a thread per core each would wait for each other most of the time
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):  # else workers would inherit it
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    code = tempfile.TemporaryDirectory(prefix="vesselseg-code-")
    os.environ["HF_MODULES_CACHE"] = code.name
    config.add_cleanup(code.cleanup)
    machine_speed.configure()
    fork_server.configure(config)
    cost.configure(config)
    config.pluginmanager.register(Summary())
    # a shell's background job ignores Ctrl-C, and so would the tools that tests start and end with it
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers (-n): one file's tests share a worker, and so do end-to-end tests, which take all cores."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "e2e" if file.startswith("tests/e2e/") else file

    config.option.loadscopereorder = False  # in the order below, not by the number of tests
    return Scheduling(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first, end-to-end ones last: a broken unit is reported before minutes are spent.

    Workers (-n) begin with what takes longest, so that none of them works alone in the end.
    """
    for item in items:
        cost.mark_by_fixtures(item)
    items.sort(
        key=lambda item: (item.get_closest_marker("e2e") is not None, cost.is_dear(item)),
        reverse=hasattr(config, "workerinput"),
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """The time limit of a test is that of an idle machine; a loaded one gets more."""
    marker = item.get_closest_marker("timeout")
    seconds = marker.args[0] if marker else item.config.getini("timeout")
    item.add_marker(pytest.mark.timeout(machine_speed.patience(float(seconds))), append=False)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from cost.measured(item, "setup"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from cost.measured(item, "call"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from cost.measured(item, "teardown"))


class Summary:
    """CPU time above pytest's own last line, by kind of test, added up over the workers."""

    def __init__(self) -> None:
        self.costs = cost.Costs()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.costs.add(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        self.costs.write(terminalreporter.write_line)
