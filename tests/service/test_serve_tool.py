"""vesselseg serve as a process: it starts, prints its address, and stops gracefully."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import REPOSITORY
from tests.fork_server import python
from tests.machine_speed import patience
from tests.service.running import assert_error, png, wait_until
from tests.tiny import model_arguments, picture, save_checkpoint, shaken_model

pytestmark = pytest.mark.process

WAIT_MS = 600_000  # long enough that the batch of three starts only when it is full


@pytest.fixture(scope="module")
def model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.pth"
    return save_checkpoint(shaken_model(tiny_base), path, model_arguments(tiny_base))


def command(*arguments: object) -> list[str]:
    return [python(), str(REPOSITORY / "tools" / "serve.py"), *map(str, arguments)]


@pytest.fixture
def started(model: Path) -> Iterator[tuple[subprocess.Popen[str], str, Future[str]]]:
    """The process, its address, and the future of its remaining output."""
    options = ("--port", 0, "--device", "cpu", "--wait-ms", WAIT_MS, "--batch", 3)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(model, *options), stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "open http://" in line:
                break
        else:
            pytest.fail("".join(lines))
        with ThreadPoolExecutor(1) as pool:  # reads continuously: a full pipe would block the service
            yield process, line.split("open ")[1].split("/ ")[0], pool.submit(process.stderr.read)
            process.kill()
    finally:
        process.kill()
        process.wait()


def test_it_stops_when_running_requests_are_done(started: tuple[subprocess.Popen[str], str, Future[str]]) -> None:
    process, url, written = started
    files = {"image": ("secret-name.png", png(picture(1)))}
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=url, timeout=patience(60)) as later:
        assert later.get("/models").json()["models"][0]["name"] == "tiny.pth"
        assert later.get("/health").status_code == 200
        running = [pool.submit(httpx.post, f"{url}/predict", files=files, timeout=patience(60)) for _ in range(2)]
        wait_until(lambda: 'vesselseg_queue_length{model="tiny.pth"} 2' in later.get("/metrics").text)
        with half_a_request(url, files) as (connection, rest):
            wait_until(lambda: "vesselseg_requests_running 4" in later.get("/metrics").text)  # including this one
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: later.get("/health").json()["status"] == "stopping")
            assert_error(later.post("/predict", files=files), 503, "stopping")
            connection.sendall(rest)
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        assert [answer.result().status_code for answer in running] == [200, 200]
    assert process.wait(patience(60)) == 0
    log = written.result(patience(60))
    assert "Traceback" not in log and "secret" not in log and log.count("status=200 model=tiny.pth") == 3
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=2)


@contextmanager
def half_a_request(url: str, files: dict[str, tuple[str, bytes]]) -> Iterator[tuple[socket.socket, bytes]]:
    """A connection with the first part of a request sent, and the rest of it."""
    request = httpx.Request("POST", f"{url}/predict", files=files)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    body = request.read()
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=patience(60)) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\n{head}\r\n".encode() + body[:100])
        yield connection, body[100:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x", "--host", "0.0.0.0"), "no token is set; add --token-file"),
        (("x", "--token-file", "/nowhere/token"), "--token-file: /nowhere/token"),
        (("x", "--port", "70000", "--batch", "0"), "--port 70000: expected a number from 1 to 65535, or 0"),
    ],
)
def test_wrong_arguments_are_one_message(arguments: tuple[str, ...], words: str) -> None:
    outcome = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert_one_message(outcome, words)


def test_missing_packages_are_named() -> None:
    tool = str(REPOSITORY / "tools" / "serve.py")
    script = f"""
import runpy, sys
sys.argv, sys.modules["uvicorn"] = [{tool!r}, "model"], None
runpy.run_path({tool!r}, run_name="__main__")
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert_one_message(outcome, "not installed: uvicorn; pip install 'vesselseg[serve]'")


def assert_one_message(outcome: subprocess.CompletedProcess[str], words: str) -> None:
    assert outcome.returncode == 2 and outcome.stderr.startswith("error: ") and words in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
