from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from vesselseg.errors import WeightsError
from vesselseg.models.checkpoints.base_folder import read_base_folder
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
                elif self.path.startswith(f"/api/models/someone/tiny/tree/{REVISION}"):  # huggingface-hub 2
                    sizes = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]
                    entries = [{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in sizes]
                    self.answer(json.dumps(entries).encode())
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


@pytest.fixture
def set_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Sets what a user sets for the hub, in a working directory without models.

    The hub's library reads its settings once, on import: it is imported again, and put back after the test.
    """
    monkeypatch.chdir(tmp_path)
    before = remove_library()

    def set_variables(**variables: str) -> None:
        for name in HUB_SETTINGS:
            monkeypatch.delenv(name, raising=False)
        for name, value in {"HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "*", **variables}.items():
            monkeypatch.setenv(name, value)
        remove_library()

    yield set_variables
    remove_library()
    sys.modules.update(before)


def remove_library() -> dict[str, ModuleType]:
    """The hub's library leaves sys.modules; returns what was there."""
    names = [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]
    return {name: sys.modules.pop(name) for name in names}


def read(*names: str) -> list[tuple[int, Path]]:
    """Number of tensors and path of each."""
    folders = [read_base_folder(name) for name in names]
    return [(len(list(folder.stream())), folder.path) for folder in folders]


def test_download_then_offline(hub: Hub, set_hub: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    set_hub(HF_ENDPOINT=hub.address)
    with caplog.at_level(logging.INFO):
        pinned, unpinned = read("someone/tiny@v1", "someone/tiny")
    assert "/api/models/someone/tiny/revision/v1" in hub.asked
    assert any(path.endswith("model.safetensors") for path in hub.asked)
    assert not any(path.endswith((".py", ".bin")) for path in hub.asked)
    assert pinned == unpinned and caplog.text.count("pin it with") == 1
    assert f"pin it with someone/tiny@{REVISION}" in caplog.text
    asked = len(hub.asked)
    set_hub(HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1")
    assert read("someone/tiny@v1") == [pinned] and len(hub.asked) == asked


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_neither_cached_nor_reachable_is_one_sentence(variables: dict[str, str], set_hub: Callable[..., None]) -> None:
    set_hub(**variables)
    with pytest.raises(WeightsError) as caught:
        read("someone/tiny@v1")
    (message,) = str(caught.value).splitlines()
    assert "someone/tiny@v1 is neither a local folder nor in the hub's cache, and cannot be downloaded now" in message
    assert "hf download someone/tiny --revision v1 --exclude '*.py' --local-dir weights/tiny" in message


def test_a_repository_that_is_not_there(hub: Hub, set_hub: Callable[..., None]) -> None:
    set_hub(HF_ENDPOINT=hub.address)
    with pytest.raises(WeightsError) as caught:
        read("someone/else")
    assert "someone/else is neither a local folder" in str(caught.value).splitlines()[-1]
