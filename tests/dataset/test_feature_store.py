"""Files of stored features are complete or absent, and never those of another key."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from vesselseg.dataset.batch import EncodedViews
from vesselseg.dataset.feature_store import ABANDONED_S, FeatureStore, weights_fingerprint
from vesselseg.errors import UserError

KEY = {"weights": "abc", "views": {"tile_size": 56}}


def encoded_views(seed: int, tiles: int = 2) -> EncodedViews:
    generator = torch.Generator().manual_seed(seed)
    shapes = (tiles, 4, 16), (1, 8, 2, 2), (1, 4, 4, 4), (1, 2, 8, 8)
    return EncodedViews(*(torch.randn(shape, generator=generator).bfloat16() for shape in shapes))


def same(first: EncodedViews, second: EncodedViews) -> bool:
    one, other = first.tensors(), second.tensors()
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def in_child(work: Callable[[], None]) -> int:
    """Run it in a forked process, which exits with 0 on success; returns the process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = FeatureStore(tmp_path, KEY)
    made.create()
    return made


@pytest.mark.parametrize("width", [16, 21])
def test_stored_features_are_read_back_exactly(store: FeatureStore, width: int) -> None:
    encoded, masks = encoded_views(0), torch.randint(0, 2, (3, 10, width), dtype=torch.uint8)
    assert not store.holds("one")
    written = store.write("one", encoded, masks, "clip/one.png")
    assert store.holds("one") and not store.holds("two")
    found, found_masks = store.read("one")
    assert same(found, encoded) and found.patches.dtype == torch.bfloat16
    assert torch.equal(found_masks, masks)
    assert store.bytes() == written == store.path("one").stat().st_size


def test_masks_of_parts_of_pixels_are_read_back_exactly(store: FeatureStore) -> None:
    masks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).half() / 255
    store.write("one", encoded_views(0), masks, "one.png")
    found = store.read("one")[1]
    assert found.dtype == torch.float16 and torch.equal(found, masks)


def test_pixels_are_kept_where_the_key_says_so_and_nowhere_else(tmp_path: Path, store: FeatureStore) -> None:
    seeing, masks = FeatureStore(tmp_path, {**KEY, "view": True}), torch.zeros(1, 10, 16, dtype=torch.uint8)
    seeing.create()
    encoded = encoded_views(0)
    encoded.view = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    seeing.write("one", encoded, masks, "one.png")
    assert seeing.holds("one") and same(seeing.read("one")[0], encoded)
    store.write("one", encoded_views(0), masks, "one.png")
    assert store.read("one")[0].view is None
    for path, other in ((seeing.path("one"), store), (store.path("one"), seeing)):
        shutil.copy(path, other.path("other"))
        assert not other.holds("other")


def test_processes_can_write_the_same_views_concurrently(store: FeatureStore) -> None:
    """The last writer replaces a complete file by a complete file; readers never see a part."""
    masks, names = torch.ones((1, 8, 8), dtype=torch.uint8), [f"view{number}" for number in range(20)]

    def write() -> None:
        for number, name in enumerate(names * 5):
            store.write(name, encoded_views(number % len(names), tiles=50), masks, name)

    children = [in_child(write), in_child(write)]
    while children:
        ended = [os.waitpid(child, os.WNOHANG) for child in children]
        assert not any(status for _, status in ended)
        children = [child for child, (number, _) in zip(children, ended) if number == 0]
        for number, name in enumerate(names):
            if not children or store.path(name).exists():
                assert same(store.read(name)[0], encoded_views(number, tiles=50))
    assert all(store.holds(name) for name in names)
    assert len(list(store.folder.iterdir())) == len(names) + 1


@pytest.mark.parametrize("left", [0, 5, 200, -1])
def test_a_truncated_file_is_detected(store: FeatureStore, left: int) -> None:
    store.write("one", encoded_views(0), torch.ones((1, 4, 4), dtype=torch.uint8), "one.png")
    os.truncate(store.path("one"), left if left >= 0 else store.path("one").stat().st_size - 1)
    assert not store.holds("one")
    with pytest.raises(
        UserError, match=rf"{store.path('one')}: stored features are damaged or missing .*--resume auto"
    ):
        store.read("one")


def test_a_missing_file_is_named(store: FeatureStore) -> None:
    with pytest.raises(UserError, match=r"one\.safetensors: stored features are damaged or missing"):
        store.read("one")


def test_another_key_is_another_folder(tmp_path: Path, store: FeatureStore) -> None:
    store.write("one", encoded_views(0), torch.ones((1, 4, 4), dtype=torch.uint8), "one.png")
    other = FeatureStore(tmp_path, {**KEY, "weights": "abd"})
    other.create()
    assert not other.holds("one")
    again = FeatureStore(tmp_path, dict(reversed(KEY.items())))
    again.create()
    assert again.holds("one")


def test_an_edited_key_is_rejected(store: FeatureStore) -> None:
    path = store.folder / "store.json"
    path.write_text(path.read_text().replace("abc", "abd"))
    with pytest.raises(UserError, match=rf"{path} was edited.*remove {store.folder}"):
        store.create()


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"features cannot be stored there .*; set features\.folder"):
        FeatureStore(tmp_path / "file", KEY).create()


def test_a_failed_write_leaves_no_file(store: FeatureStore) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(
            UserError, match=r"the features of one\.png cannot be written .*Features written so far are kept"
        ):
            store.write("one", encoded_views(0), torch.ones((1, 4, 4), dtype=torch.uint8), "one.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in store.folder.iterdir()] == ["store.json"]


def test_leftovers_of_killed_processes_are_removed_later(store: FeatureStore) -> None:
    old, new = store.folder / "a.host.1.unfinished", store.folder / "b.host.2.unfinished"
    for path in (old, new):
        path.touch()
    before = time.time() - ABANDONED_S - 60
    os.utime(old, (before, before))
    store.remove_abandoned()
    assert not old.exists() and new.exists()


def test_a_store_that_is_used_is_not_removed(tmp_path: Path, store: FeatureStore) -> None:
    first, second = store.use(), FeatureStore(tmp_path, KEY).use()
    store.leave(first)
    assert not store.remove_unless_used() and store.folder.exists()
    child = in_child(lambda: time.sleep(30))  # a loading process inherits the lock and may outlive it
    store.leave(second)
    assert store.remove_unless_used() and not store.folder.exists()
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert store.remove_unless_used()  # a missing folder is no error


def test_using_a_store_that_is_being_removed_creates_it_again(store: FeatureStore) -> None:
    remover = (store.folder / "store.json").open("rb")
    fcntl.flock(remover, fcntl.LOCK_EX)

    def use() -> None:
        remover.close()
        sign = store.use()
        assert (store.folder / "store.json").exists() and not sign.closed

    child = in_child(use)
    time.sleep(0.2)  # by now it waits for the lock, or else finds no folder
    (store.folder / "store.json").unlink()
    remover.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("moment", ["create", "_temporary"])
def test_a_store_removed_concurrently_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Removal between creating and opening it, and between creating the folder and writing the key."""
    store, calls = FeatureStore(tmp_path, KEY), []
    step: Callable[..., Any] = getattr(FeatureStore, moment)

    def disturbed(self: FeatureStore, *arguments: Any) -> Any:
        made = step(self, *arguments)
        calls.append(moment)
        if len(calls) == 1:
            shutil.rmtree(store.folder)
        return made

    monkeypatch.setattr(FeatureStore, moment, disturbed)
    store.leave(store.use())
    assert len(calls) == 2 and [path.name for path in store.folder.iterdir()] == ["store.json"]


def test_a_store_created_again_shares_no_file_with_the_deleted_one(
    tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, delete = torch.ones((1, 4, 4), dtype=torch.uint8), shutil.rmtree
    signs: list[BinaryIO] = []
    store.write("one", encoded_views(0), masks, "one.png")
    left = tmp_path / f"{store.folder.name}.host.1.removed"  # by a process that was killed while it deleted
    left.mkdir()

    def meanwhile(folder: Path, **options: Any) -> None:
        if not signs:
            signs.append(store.use())
            assert not store.holds("one")
            store.write("two", encoded_views(1), masks, "two.png")
        delete(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", meanwhile)
    assert store.remove_unless_used()
    assert store.holds("two") and not store.remove_unless_used() and list(tmp_path.iterdir()) == [store.folder]
    store.leave(signs[0])


def test_a_fingerprint_distinguishes_weights() -> None:
    weight = torch.randn(70, 90, generator=torch.Generator().manual_seed(0))
    seen = {weights_fingerprint([("a", weight)])}
    swapped, flipped = weight.clone(), weight.clone()
    swapped[0, 0], swapped[3, 5] = weight[3, 5], weight[0, 0]
    flipped[69, 89] = -flipped[69, 89]
    for other in (swapped, flipped, weight.T, weight.bfloat16(), weight.view(90, 70), torch.zeros(70, 90)):
        seen.add(weights_fingerprint([("a", other)]))
    seen.add(weights_fingerprint([("b", weight)]))
    seen.add(weights_fingerprint([("a", weight), ("b", weight)]))
    assert len(seen) == 9
    assert weights_fingerprint([("a", weight.T.clone().T)]) == weights_fingerprint([("a", weight)])


def test_a_fingerprint_does_not_depend_on_the_chunking() -> None:
    """Tensors above four million elements are summed in chunks with continuous positions."""
    long = torch.zeros((1 << 22) + 1, dtype=torch.int16)
    found = set()
    for place in (0, 1, (1 << 22) - 1, 1 << 22):
        moved = long.clone()
        moved[place] = 1
        found.add(weights_fingerprint([("a", moved)]))
    assert len(found) == 4
