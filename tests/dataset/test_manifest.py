from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vesselseg.dataset.manifest import (
    Record,
    fingerprint,
    parse_record,
    read_manifest,
    read_split,
    read_splits,
    write_manifest,
)
from vesselseg.errors import ManifestError

TRIANGLE = [0.0, 0.0, 4.0, 0.0, 4.0, 4.0]
RUN_LENGTH = {"size": [3, 4], "counts": "03"}


def folder_with(folder: Path, entries: Any, splits: Any = None) -> Path:
    (folder / "annotations.json").write_text(json.dumps(entries), encoding="utf-8")
    if splits is not None:
        (folder / "splits.json").write_text(json.dumps(splits), encoding="utf-8")
    return folder


def test_both_forms_read_alike(tmp_path: Path) -> None:
    one_object = {"image": "a.png", "mask": [TRIANGLE, TRIANGLE], "text": "blood vessel"}
    sa2va = {"image": "a.png", "mask": [[TRIANGLE, TRIANGLE]], "text": ["blood vessel"]}
    expected = Record("a.png", ((TRIANGLE, TRIANGLE),), ("blood vessel",))
    assert parse_record(one_object) == parse_record(sa2va) == expected


def test_written_records_are_read_back(tmp_path: Path) -> None:
    records = [
        Record("clip/a.png", ((TRIANGLE,), (RUN_LENGTH, TRIANGLE)), ("vessel", "导管"), group="patient 7"),
        Record("b.png", ((),), ("vessel",)),
        Record("c.png", (), ()),
        Record("d.png", ((TRIANGLE,),), ("vessel",), spacing=(0.2, 0.3), observers={"2": ((RUN_LENGTH, TRIANGLE),)}),
    ]
    write_manifest(tmp_path, records)
    assert read_manifest(tmp_path) == records
    assert records[3].with_observer("2") == Record(
        "d.png", ((RUN_LENGTH, TRIANGLE),), ("vessel",), spacing=(0.2, 0.3), observers=records[3].observers
    )
    entry = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))[1]
    assert entry == {"image": "b.png", "mask": [[]], "text": ["vessel"]}


def test_the_fill_is_kept_and_checked(tmp_path: Path) -> None:
    record = Record("a.png", (([1.0, 1.0, 5.0, 1.0, 5.0, 5.0],),), ("blood vessel",))
    write_manifest(tmp_path, [record, replace(record, image="b.png", fill="coco")])
    written = json.loads((tmp_path / "annotations.json").read_text())
    assert "fill" not in written[0] and written[1]["fill"] == "coco"  # what older versions wrote stays the same
    assert [one.fill for one in read_manifest(tmp_path)] == ["labelme", "coco"]
    with pytest.raises(ManifestError, match=r'b.png: "fill" is \'opencv\', expected one of labelme, coco, coverage'):
        parse_record({**written[1], "fill": "opencv"})


def test_an_absent_or_null_group_is_the_image_itself() -> None:
    for extra in ({}, {"group": None}, {"group": ""}):
        record = parse_record({"image": "a.png", "mask": [], "text": [], **extra})
        assert record.group_key == "a.png"
    assert parse_record({"image": "a.png", "mask": [], "text": [], "group": 7}).group_key == "7"


BROKEN: dict[str, tuple[Any, str]] = {
    "no object": ([1, 2], "expected an object"),
    "no image": ({"mask": [], "text": []}, "expected an object"),
    "absolute": ({"image": "/a.png", "mask": [], "text": []}, "below images/"),
    "climbs out": ({"image": "x/../../a.png", "mask": [], "text": []}, "below images/"),
    "mask is no list": ({"image": "a.png", "mask": "x", "text": []}, '"mask" must be a list, found str'),
    "text is a number": ({"image": "a.png", "mask": [], "text": 3}, '"text" must be'),
    "blank phrase": ({"image": "a.png", "mask": [[TRIANGLE]], "text": [" "]}, '"text" must be'),
    "too few phrases": ({"image": "a.png", "mask": [[TRIANGLE], [TRIANGLE]], "text": ["v"]}, "1 phrases for 2 objects"),
    "flat polygon as object": ({"image": "a.png", "mask": [TRIANGLE], "text": ["v"]}, "flat list of finite numbers"),
    "spacing": ({"image": "a.png", "mask": [], "text": [], "spacing": [0.2]}, '"spacing" must be'),
    "no spacing": ({"image": "a.png", "mask": [], "text": [], "spacing": [0.2, 0]}, '"spacing" must be'),
    "observers": ({"image": "a.png", "mask": [], "text": [], "observers": [[]]}, '"observers" must contain'),
    "observer's objects": (
        {"image": "a.png", "mask": [], "text": [], "observers": {"2": [[TRIANGLE]]}},
        "a.png, observer 2: 0 phrases for 1 objects",
    ),
    "one point": ({"image": "a.png", "mask": [[[1, 2]]], "text": ["v"]}, "at least 3 points"),
    "a box": ({"image": "a.png", "mask": [[[1, 2, 30, 40]]], "text": ["v"]}, "at least 3 points"),
    "odd count": ({"image": "a.png", "mask": [[[*TRIANGLE, 1]]], "text": ["v"]}, "found 7 numbers"),
    "not finite": ({"image": "a.png", "mask": [[[*TRIANGLE, 1, float("nan")]]], "text": ["v"]}, "finite"),
    "truth values": ({"image": "a.png", "mask": [[[True] * 6]], "text": ["v"]}, "finite numbers"),
    "text as number": ({"image": "a.png", "mask": [[["1"] * 6]], "text": ["v"]}, "finite numbers"),
    "run length without size": ({"image": "a.png", "mask": [[{"counts": "x"}]], "text": ["v"]}, '"size"'),
    "run length of one side": ({"image": "a.png", "mask": [[{"size": [3], "counts": "x"}]], "text": ["v"]}, '"size"'),
    "run length as a list": ({"image": "a.png", "mask": [[{"size": [3, 4], "counts": [1]}]], "text": ["v"]}, "counts"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_invalid_record_is_rejected(name: str) -> None:
    entry, reason = BROKEN[name]
    with pytest.raises(ManifestError, match=reason.replace("(", r"\(")):
        parse_record(entry)


def test_all_problems_at_once_with_their_record(tmp_path: Path) -> None:
    good = {"image": "a.png", "mask": [TRIANGLE], "text": "v"}
    folder_with(tmp_path, [good, good, 3, {"image": "b.png", "mask": [[[1, 2]]], "text": ["v"]}])
    with pytest.raises(ManifestError) as raised:
        read_manifest(tmp_path)
    message = str(raised.value)
    assert "3 problem(s)" in message
    assert "record 2: expected an object" in message
    assert "record 3: b.png, object 0: a polygon needs" in message
    assert "a.png: in more than one record" in message


def test_many_problems_are_counted_not_listed(tmp_path: Path) -> None:
    folder_with(tmp_path, [3] * 30)
    with pytest.raises(ManifestError, match=r"30 problem\(s\)[\s\S]*and 10 more"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(("content", "reason"), [("[", "not readable as JSON"), ("{}", "expected a list of records")])
def test_an_invalid_manifest(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(ManifestError, match=reason):
        read_manifest(tmp_path)


def test_a_missing_folder_error_names_the_tool_that_creates_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"does not exist; .*vesselseg prepare"):
        read_manifest(tmp_path / "nowhere")


def entries(*names: str) -> list[dict[str, Any]]:
    return [{"image": name, "mask": [TRIANGLE], "text": "v"} for name in names]


def test_a_split_has_the_order_of_its_list(tmp_path: Path) -> None:
    folder_with(tmp_path, entries("a", "b", "c"), {"train": ["c", "a"], "val": ["b"], "test": []})
    assert [record.image for record in read_split(tmp_path, "train")] == ["c", "a"]
    assert read_split(tmp_path, "test") == []


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ({"train": ["a"], "val": []}, "lists train, val, test"),
        ({"train": ["a", "b", "a"], "val": [], "test": []}, "a: 2 times in split train"),
        ([], "lists train, val, test"),
    ],
)
def test_invalid_splits(tmp_path: Path, splits: Any, reason: str) -> None:
    folder_with(tmp_path, entries("a", "b"), splits)
    with pytest.raises(ManifestError, match=reason):
        read_splits(tmp_path)


def test_names_that_the_manifest_lacks(tmp_path: Path) -> None:
    folder_with(tmp_path, entries("a"), {"train": ["a", "x", "y"], "val": [], "test": []})
    with pytest.raises(ManifestError, match=r"2 problem\(s\)\n  x: in split train but not in"):
        read_split(tmp_path, "train")
    with pytest.raises(ManifestError, match="unknown split 'training'"):
        read_split(tmp_path, "training")


def test_the_fingerprint_follows_records_and_splits(tmp_path: Path) -> None:
    splits = {"train": ["a"], "val": ["b"], "test": []}
    first = fingerprint(folder_with(tmp_path, entries("a", "b"), splits))
    assert first == fingerprint(tmp_path)
    assert first != fingerprint(folder_with(tmp_path, entries("a", "b"), {**splits, "val": [], "test": ["b"]}))
    assert first != fingerprint(folder_with(tmp_path, entries("a", "b", "c"), splits))
