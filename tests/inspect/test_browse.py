"""The server of vesselseg browse: the list, images and the model's input; and requests that it rejects."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from tests.command_line import call_command
from tests.inspect.browsed import BROKEN, FILLERS, HEIGHT, MISSING, ODD, OUTSIDE, WIDE, WIDTH, write_browsed
from tests.labelme_files import polygon, run
from tests.machine_speed import patience
from vesselseg.dataset.image_views import normalise, to_pixels
from vesselseg.dataset.manifest import image_path
from vesselseg.dataset.vessel_dataset import VesselDataset
from vesselseg.errors import ManifestError
from vesselseg.inspect.browse.catalogue import Catalogue
from vesselseg.inspect.browse.model_views import ModelViews
from vesselseg.inspect.browse.renderer import SizedCache
from vesselseg.inspect.browse.server import BrowseServer
from vesselseg.training.training_data import training_dataset
from vesselseg.web_pages import SECURITY_HEADERS

AUGMENT = {"quarter_turns": True, "noise": 0.02}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_browsed(tmp_path_factory.mktemp("browse") / "data")


@pytest.fixture(scope="module")
def training(folder: Path, tiny_base: Path) -> VesselDataset:
    return training_dataset(folder, tiny_base, 128, max_tiles=6, augment=AUGMENT, seed=3, variants=2)


@pytest.fixture(scope="module")
def server(folder: Path, training: VesselDataset) -> Iterator[BrowseServer]:
    serving = BrowseServer(Catalogue(folder))
    serving.views = ModelViews(training, "mine.py")
    serving.start()
    yield serving
    serving.shutdown()
    serving.server_close()


def number_of(server: BrowseServer, name: str) -> int:
    return next(entry.number for entry in server.catalogue.entries if entry.record.image == name)


def get(server: BrowseServer, path: str) -> bytes:
    with urlopen(server.url + path.lstrip("/")) as answer:
        return bytes(answer.read())


def get_json(server: BrowseServer, path: str) -> Any:
    return json.loads(get(server, path))


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def raw(server: BrowseServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """A request with the unmodified path, which other clients normalise."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=patience(60))
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_list_contains_split_fraction_and_findings(server: BrowseServer) -> None:
    listed = get_json(server, "/api/dataset")
    images = {image["name"]: image for image in listed["images"]}
    assert len(images) == 9 + FILLERS and listed["phrases"] == ["blood vessel", "guide wire"]
    first = images["first.png"]
    assert (first["split"], first["group"], first["size"]) == ("train", "p0", [WIDTH, HEIGHT])
    assert first["share"] == pytest.approx((61 * 9 + 5 * 56 - 5 * 9) / (WIDTH * HEIGHT))
    assert first["codes"] == ["too_few_points"] and images["deep.png"]["codes"] == ["sixteen_bit"]
    assert images["nothing.png"]["share"] == 0.0 and images[f"more_{FILLERS - 1}.png"]["split"] == "none"
    assert [note["where"] for note in listed["elsewhere"]] == ["source/lost.json"]
    assert [name for name, image in images.items() if image["problem"]] == [MISSING, OUTSIDE]


def test_preparation_findings_reach_their_image(tmp_path: Path, source: Path, write_label: Any, square: Any) -> None:
    write_label(source / "deeper", "p9_f9", [square, polygon([[1, 1], [2, 2]])])
    run(source, tmp_path / "data")
    catalogue = Catalogue(tmp_path / "data")
    noted = {entry.record.image: [note.code for note in entry.notes] for entry in catalogue.entries if entry.notes}
    assert noted == {"deeper/p9_f9.png": ["too_few_points"]} and not catalogue.findings.elsewhere


@pytest.mark.parametrize("content", ["{", "[]", '{"findings": 3}', '{"findings": [3, {}]}'])
def test_a_damaged_or_missing_report_stops_nothing(tmp_path: Path, content: str) -> None:
    folder = write_browsed(tmp_path / "data")
    (folder / "check.json").write_text(content)
    (folder / "report.json").unlink()
    catalogue = Catalogue(folder)
    assert len(catalogue.entries) == 9 + FILLERS
    assert len(catalogue.findings.problems) == (content in ("{", "[]"))


def test_a_fold_shows_the_images_of_its_dataset_folder_in_its_own_splits(tmp_path: Path) -> None:
    folder = write_browsed(tmp_path / "data")
    fold = folder / "folds" / "2"
    fold.mkdir(parents=True)
    (fold / "splits.json").write_text(json.dumps({"train": ["nothing.png"], "val": [], "test": ["first.png"]}))
    catalogue = Catalogue(fold)
    assert catalogue.name == "data, fold 2" and catalogue.entries[0].split == "test"
    assert catalogue.image(0).size == (WIDTH, HEIGHT) and [note.code for note in catalogue.entries[0].notes]


def test_details_measure_objects_and_observers(server: BrowseServer) -> None:
    details = get_json(server, f"/api/images/{number_of(server, 'first.png')}")
    assert [(found["phrase"], found["pixels"]) for found in details["objects"]] == [
        ("blood vessel", 61 * 9),
        ("guide wire", 5 * 56),
    ]
    assert details["objects"][1]["box"] == [40, 5, 45, 61] and details["spacing"] == [0.2, 0.25]
    grey = pixels(get(server, f"/images/{number_of(server, 'first.png')}.png"))
    assert details["objects"][1]["mean"] == pytest.approx(grey[5:61, 40:45].mean())
    inside = sum(details["objects"][0]["histogram"]) + sum(details["objects"][1]["histogram"])
    assert inside - 5 * 9 + sum(details["background"]) == WIDTH * HEIGHT  # both objects contain the crossing
    twice = get_json(server, f"/api/images/{number_of(server, 'seen_twice.png')}")
    assert twice["observers"] == [{"name": "2", "pixels": 61 * 9, "dice": pytest.approx(7 / 9)}]


def test_masks_of_both_observers_equal_the_rasteriser(server: BrowseServer) -> None:
    number = number_of(server, "seen_twice.png")
    first, second = (pixels(get(server, f"/images/{number}/mask-{observer}-0.png")) for observer in (0, 1))
    assert set(np.unique(first)) == {0, 255} and first.sum() == second.sum() == 255 * 61 * 9
    assert first[10:19, 10:71].all() and second[12:21, 10:71].all()
    assert raw(server, f"/images/{number}/mask-2-0.png")[0] == raw(server, f"/images/{number}/mask-0-1.png")[0] == 422


def test_normalisation_is_inverted_exactly() -> None:
    image = Image.fromarray(
        np.random.default_rng(0).permutation(np.arange(3 * 1024) % 256).astype(np.uint8).reshape(32, 32, 3)
    )
    assert (to_pixels(normalise(image)) == np.asarray(image)).all()


@pytest.mark.parametrize("name", ["first.png", WIDE, "nothing.png", "deep.png"])
@pytest.mark.parametrize("epoch", [0, 3])
def test_the_view_is_the_example_that_training_reads(
    server: BrowseServer, training: VesselDataset, name: str, epoch: int
) -> None:
    number = number_of(server, name)
    example = training[(epoch, number)]
    seen = get_json(server, f"/api/images/{number}/seen/{epoch}")
    base = f"/images/{number}/seen/{epoch}"
    assert (seen["role"], seen["view"], seen["tiles"]) == ("training", epoch % 2, len(example.tiles))
    assert (to_rgb(get(server, f"{base}/square.png")) == to_pixels(example.sam_image)).all()
    for place, tile in enumerate(example.tiles):
        assert (to_rgb(get(server, f"{base}/tile-{place}.png")) == to_pixels(tile)).all()
    for place, mask in enumerate(example.masks):
        assert (pixels(get(server, f"{base}/mask-{place}.png")) == mask.numpy() * 255).all()
    assert [asked["phrase"] for asked in seen["objects"]] == list(example.phrases)
    (said,) = seen["conversations"]
    assert said["tokens"]["all"] == len(example.input_ids)
    assert said["tokens"]["learnt"] == int((example.labels != -100).sum())
    text = training.tokenizer.decode(example.input_ids)
    assert all(spoken["question"] in text and spoken["answer"] in text for spoken in said["rounds"])


def to_rgb(content: bytes) -> np.ndarray:
    found = pixels(content)
    return found if found.ndim == 3 else np.repeat(found[..., None], 3, -1)


def test_other_splits_are_shown_as_in_evaluation(server: BrowseServer, training: VesselDataset) -> None:
    number = number_of(server, "more_20.png")
    seen = get_json(server, f"/api/images/{number}/seen/5")
    assert seen["role"] == "evaluation" and server.catalogue.entries[number].split == "val"
    stored = Image.open(image_path(training.root, server.catalogue.entries[number].record)).convert("RGB")
    shown = to_rgb(get(server, f"/images/{number}/seen/5/square.png"))
    assert (shown == np.asarray(stored.resize((128, 128), Image.Resampling.BICUBIC))).all()
    unused = get_json(server, f"/api/images/{number_of(server, f'more_{FILLERS - 1}.png')}/seen/0")
    assert unused["state"] == "failed" and "in no split" in unused["problem"]


def test_an_image_beyond_the_limit_is_not_used_in_training(folder: Path, tiny_base: Path) -> None:
    limited = ModelViews(training_dataset(folder, tiny_base, 128, limit=1, augment=AUGMENT), "mine.py")
    entries = Catalogue(folder).entries
    assert [limited.render(entries[number], 0).facts["role"] for number in (0, 1)] == ["training", "unused"]


def test_without_a_tokenizer_views_and_questions_are_the_same(folder: Path, training: VesselDataset) -> None:
    bare = training_dataset(folder, None, 128, max_tiles=1, augment=AUGMENT, seed=3, variants=2)
    seen = ModelViews(bare, "mine.py").render(Catalogue(folder).entries[0], 1)
    conversation = training.conversation(0, 1)
    assert [asked["question"] for asked in seen.facts["conversations"][0]["rounds"]] == [
        q for q, _ in conversation.rounds
    ]
    assert seen.facts["conversations"][0]["tokens"] is None and (seen.facts["tile"], seen.facts["image_tokens"]) == (
        448,
        256,
    )
    assert torch.equal(torch.from_numpy(seen.square), torch.from_numpy(to_pixels(training[(1, 0)].sam_image)))


def test_a_conversation_that_is_too_long_is_reported(folder: Path, tiny_base: Path) -> None:
    short = training_dataset(folder, tiny_base, 128, max_length=60)
    facts = ModelViews(short, "mine.py").render(Catalogue(folder).entries[0], 0).facts
    assert "at most 60 fit" in facts["conversations"][0]["problem"]


def test_a_view_requested_while_the_config_is_loading(folder: Path, training: VesselDataset) -> None:
    """The config may become available between two reads of the attribute."""
    moments = iter([None, ModelViews(training, "mine.py"), ModelViews(training, "mine.py")])

    class Loading(BrowseServer):
        views = property(lambda _: next(moments), lambda *_: None)  # type: ignore[assignment]

    server = Loading(Catalogue(folder))
    answers = [server.respond("/api/images/0/seen/0") for _ in range(2)]
    server.server_close()
    early, late = (json.loads(answer.content) for answer in answers if answer is not None)
    assert early == {"state": "loading"} and late["state"] == "ready" and late["objects"]


@pytest.mark.parametrize("name", [BROKEN, MISSING, OUTSIDE])
def test_an_unreadable_image_is_a_message(server: BrowseServer, name: str) -> None:
    number = number_of(server, name)
    assert name in get_json(server, f"/api/images/{number}")["problem"]
    assert get(server, f"/images/{number}/thumb-tinted.jpg").startswith(b"<svg")
    assert raw(server, f"/images/{number}.png")[0] == 422


def test_a_link_out_of_the_folder_is_not_followed(server: BrowseServer, folder: Path) -> None:
    assert (folder.parent / "private.png").is_file() and (folder / "images" / OUTSIDE).resolve().is_file()
    with pytest.raises(ManifestError, match="links out of the dataset folder"):
        server.catalogue.image(number_of(server, OUTSIDE))
    status, content = raw(server, f"/api/images/{number_of(server, OUTSIDE)}/seen/0")
    assert status == 200 and json.loads(content)["state"] == "failed"


@pytest.mark.parametrize(
    "path",
    [
        "/annotations.json",
        "/images/first.png",
        "/../annotations.json",
        "/images/../annotations.json",
        "/images/0/../../../private.png",
        "/images/%2e%2e/annotations.json",
        "/images/..%2fannotations.json",
        "//etc/passwd",
        "/etc/passwd",
        "/page/../__init__.py",
        "/page/..%2f__init__.py",
        "/page/__init__.py",
        "/page/base.html.j2",
        "/page/nothing.js",
        "/images/-1.png",
        "/images/0.png/",
        "/images/1e1.png",
        "/api/images/0/seen/-1",
        "/images/0/seen/0/tile-99.png",
        "file:///etc/passwd",
    ],
)
def test_nothing_else_is_served(server: BrowseServer, path: str) -> None:
    status, content = raw(server, path)
    assert (status, content) == (404, b"not found")


def test_numbers_out_of_range_and_other_methods_are_rejected(server: BrowseServer) -> None:
    assert raw(server, "/api/images/49")[0] == raw(server, "/images/9999999.png")[0] == 422
    assert {raw(server, "/", method)[0] for method in ("POST", "PUT", "DELETE", "OPTIONS")} == {501}
    status, content = raw(server, "/", "HEAD")
    assert status == 200 and not content


def test_only_local_hosts_are_served(server: BrowseServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    for host, expected in (
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
    ):
        assert raw(server, "/api/model", Host=host)[0] == expected
    with urlopen(server.url) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_markup_in_a_name_is_escaped(server: BrowseServer, tmp_path: Path) -> None:
    assert get_json(server, f"/api/images/{number_of(server, ODD)}")["problem"] == ""
    folder = write_browsed(tmp_path / "<script>alert(1)<")
    other = BrowseServer(Catalogue(folder))
    other.start()
    page = get(other, "/").decode()
    other.shutdown()
    other.server_close()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;" in page


def test_nothing_is_written(server: BrowseServer, folder: Path) -> None:
    def state() -> dict[str, tuple[int, str]]:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(f): (f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files}

    before = state()
    for path in (
        "/api/dataset",
        "/api/images/1",
        "/images/1.png",
        "/images/1/thumb.jpg",
        "/images/1/seen/4/square.png",
    ):
        get(server, path)
    assert state() == before


def test_the_cache_respects_its_limit() -> None:
    cache, made = SizedCache(limit=100), []

    def make(key: int, weight: int = 40) -> Any:
        return cache.get(key, lambda: (made.append(key), (key, weight))[1])

    assert [make(key) for key in (0, 1, 0, 2, 0, 1)] == [0, 1, 0, 2, 0, 1]
    assert made == [0, 1, 2, 1] and cache.weight == 80  # 1 was the longest unused
    make(9, weight=1000)
    assert cache.weight <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "error: {empty}/annotations.json does not exist; make the dataset folder with"),
        (["{folder}", "--config", "configs/none.py"], "error: --config configs/none.py does not exist"),
        (["{folder}", "--port", "99999"], "error: --port 99999: expected a number from 1 to 65535"),
        (["{folder}", "--port", "{taken}"], "error: --port {taken}: Address already in use"),
    ],
)
def test_the_tool_reports_errors(
    server: BrowseServer,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"empty": tmp_path, "folder": folder, "taken": server.server_address[1]}
    assert call_command("browse", *(argument.format(**places) for argument in arguments), "--no-open") == 2
    assert capsys.readouterr().err.startswith(message.format(**places))
