from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vesselseg.models.checkpoints.hub import hub_name

# What people and test machines set; here the hub's address and its cache are the test's.
HUB_SETTINGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_TOKEN", "no_proxy")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("path", "meaning"),
    [
        ("OpenGVLab/InternVL3-8B", ("OpenGVLab/InternVL3-8B", None)),
        ("OpenGVLab/InternVL3-8B@v1.0", ("OpenGVLab/InternVL3-8B", "v1.0")),
        (f"ByteDance/Sa2VA-InternVL3-8B@{REVISION}", ("ByteDance/Sa2VA-InternVL3-8B", REVISION)),
        ("weights/InternVL3-8B", None),
        ("./OpenGVLab/InternVL3-8B", None),
        ("/somewhere/InternVL3-8B", None),
        ("a/b/c", None),
        ("InternVL3-8B", None),
        ("run/best.pth", None),
        ("a/..", None),
    ],
)
def test_what_means_the_hub(path: str, meaning: tuple[str, str | None] | None) -> None:
    assert hub_name(path) == meaning


def test_a_folder_that_exists_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OpenGVLab" / "mine").mkdir(parents=True)
    assert hub_name("OpenGVLab/mine") is None
    assert hub_name("OpenGVLab/mistyped") is None  # beside folders of one's own


class Hub:
    """A hub of one repository on this machine; `asked` are the paths that were requested."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.asked.append(self.path)
                if self.path.startswith("/api/models/someone/tiny/revision/"):
                    files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
                    self.answer(json.dumps({"id": "someone/tiny", "sha": REVISION, "siblings": files}).encode())
                elif "/resolve/" in self.path and (folder / self.path.rsplit("/", 1)[1]).is_file():
                    self.answer((folder / self.path.rsplit("/", 1)[1]).read_bytes())
                else:
                    self.send_error(404)

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{hash(body)}"')
                self.send_header("X-Repo-Commit", REVISION)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "published"
    folder.mkdir()
    for path in tiny_base.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "modeling_internvl_chat.py").write_text("raise SystemExit('code of the hub was run')\n")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    found = Hub(folder)
    yield found
    found.server.shutdown()


READ = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from vesselseg.models.checkpoints.base_folder import read_base_folder
for name in sys.argv[1:]:
    folder = read_base_folder(name)
    print(len(list(folder.stream())), folder.path)
"""


def read(paths: str, cache: Path, repository: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads its settings once, on import."""
    inherited = {name: value for name, value in os.environ.items() if name not in HUB_SETTINGS}
    environment = {**inherited, "HF_HOME": str(cache), "PYTHONPATH": str(repository), "NO_PROXY": "*", **variables}
    command = [sys.executable, "-c", READ, *paths.split()]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache.parent, check=False)


def test_download_then_offline(hub: Hub, tmp_path: Path, repository: Path) -> None:
    cache = tmp_path / "cache"
    online = read("someone/tiny@v1 someone/tiny", cache, repository, HF_ENDPOINT=hub.address)
    assert online.returncode == 0, online.stderr[-2000:]
    assert "/api/models/someone/tiny/revision/v1" in hub.asked
    assert any(path.endswith("model.safetensors") for path in hub.asked)
    assert not any(path.endswith((".py", ".bin")) for path in hub.asked)
    pinned, unpinned = online.stdout.splitlines()
    assert pinned == unpinned and online.stderr.count("pin it with") == 1
    assert f"pin it with someone/tiny@{REVISION}" in online.stderr
    asked = len(hub.asked)
    offline = read("someone/tiny@v1", cache, repository, HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1")
    assert offline.stdout.splitlines() == [pinned] and len(hub.asked) == asked


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_neither_cached_nor_reachable_is_one_sentence(
    variables: dict[str, str], tmp_path: Path, repository: Path
) -> None:
    done = read("someone/tiny@v1", tmp_path / "cache", repository, **variables)
    message = done.stderr.strip().splitlines()[-1]
    assert "someone/tiny@v1 is no folder here, not in the hub's cache and cannot be downloaded now" in message
    assert "hf download someone/tiny --revision v1 --exclude '*.py' --local-dir weights/tiny" in message


def test_a_repository_that_is_not_there(hub: Hub, tmp_path: Path, repository: Path) -> None:
    done = read("someone/else", tmp_path / "cache", repository, HF_ENDPOINT=hub.address)
    assert "someone/else is no folder here" in done.stderr.strip().splitlines()[-1]
