"""What every test may use: the reference data beside the checkout, and the order in which tests run."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.browser import browser  # noqa: F401, a fixture for all tests

REPOSITORY = Path(__file__).resolve().parent.parent

# Nothing above imports torch. Workers (-n) with a thread per core each would wait for each other most of the time.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))


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
    code = tempfile.TemporaryDirectory(prefix="vesselseg-code-")
    os.environ["HF_MODULES_CACHE"] = code.name
    config.add_cleanup(code.cleanup)
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

    return Scheduling(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, the end-to-end ones after them: a broken unit is reported before minutes are spent."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Time of the unit tests and of the end-to-end ones, added up over the workers, above pytest's own last line."""
    seconds = {False: 0.0, True: 0.0}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "keywords"):
                seconds["e2e" in report.keywords] += report.duration
    terminalreporter.write_line(f"unit tests: {seconds[False]:.0f} s, end-to-end tests: {seconds[True]:.0f} s")
