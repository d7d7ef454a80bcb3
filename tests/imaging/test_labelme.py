"""Reading LabelMe files of every version and shape type; errors name index and field of invalid shapes."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesselseg.imaging.labelme import LabelmeError, read_labelme

TRIANGLE = [[1, 1], [9, 1], [5, 8]]


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read_shape(tmp_path: Path, shape: Any) -> Any:
    return read_labelme(write(tmp_path, {"shapes": [shape], "imagePath": "a.png"}))


def png_text(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@pytest.mark.parametrize("extra", [{}, {"shape_type": None}, {"shape_type": "polygon"}])
def test_absent_or_null_shape_type_is_a_polygon(tmp_path: Path, extra: dict[str, Any]) -> None:
    labels = read_shape(tmp_path, {"label": "vessel", "points": TRIANGLE, "line_color": None, **extra})
    assert [shape.kind for shape in labels.shapes] == ["polygon"]
    assert labels.shapes[0].points.tolist() == TRIANGLE
    assert labels.invalid == ()


def test_group_id_and_numeric_labels_are_kept(tmp_path: Path) -> None:
    shape = read_shape(tmp_path, {"label": 7, "points": TRIANGLE, "group_id": 3}).shapes[0]
    assert (shape.label, shape.group_id) == ("7", "3")
    assert read_shape(tmp_path, {"label": " a ", "points": TRIANGLE}).shapes[0].group_id is None


@pytest.mark.parametrize(
    ("shape", "code", "words"),
    [
        ({"label": "v", "points": [[1, 1]]}, "too_few_points", "3 distinct points, found 1"),
        ({"label": "v", "points": [[1, 1], [5, 5], [1, 1], [5, 5]]}, "too_few_points", "found 2 (of 4"),
        ({"label": "v", "points": [[1, 1, 4, 4], [2, 2], [3, 5]]}, "bad_field", "points[0]"),
        ({"label": "v", "points": [[1, 1], [5, "x"], [3, 5]]}, "bad_field", "points[1]"),
        ({"label": "v", "points": [[1, 1], [5, True], [3, 5]]}, "bad_field", "points[1]"),
        ({"label": "v", "points": [[1, 1], [5, float("nan")], [3, 5]]}, "not_finite", "points[1]: NaN"),
        ({"label": "v", "points": [[1, 1], [5, 10**400], [3, 5]]}, "not_finite", "points[1]"),
        ({"label": "v", "points": [[1, 1], [5, 1e300], [3, 5]]}, "not_finite", "outside any image"),
        ({"label": "v", "points": None}, "bad_field", "points"),
        ({"label": "v"}, "bad_field", "points"),
        ({"points": TRIANGLE}, "bad_field", "label"),
        ({"label": "  ", "points": TRIANGLE}, "bad_field", "label"),
        ({"label": "v", "points": TRIANGLE, "shape_type": "star"}, "unknown_type", "'star'"),
        ({"label": "v", "points": TRIANGLE, "shape_type": ["x"]}, "unknown_type", "shape_type"),
        ({"label": "v", "points": [[1, 1]], "shape_type": "rectangle"}, "too_few_points", "rectangle"),
        ({"label": "v", "points": TRIANGLE, "shape_type": "circle"}, "bad_field", "circle"),
        ({"label": "v", "points": [[1, 1], [3, 3]], "shape_type": "mask"}, "bad_mask", "mask"),
        ({"label": "v", "points": [[1, 1], [3, 3]], "shape_type": "mask", "mask": "%%"}, "bad_mask", "base64 PNG"),
        ("nothing", "bad_field", "expected an object"),
    ],
)
def test_broken_shape_names_index_field_and_reason(tmp_path: Path, shape: Any, code: str, words: str) -> None:
    good = {"label": "vessel", "points": TRIANGLE}
    labels = read_labelme(write(tmp_path, {"shapes": [good, shape, good], "imagePath": "a.png"}))
    assert [kept.index for kept in labels.shapes] == [0, 2]
    assert [(broken.index, broken.code) for broken in labels.invalid] == [(1, code)]
    assert words in labels.invalid[0].reason


def test_bitmap_has_inclusive_corners(tmp_path: Path) -> None:
    mask = np.zeros((4, 3), np.uint8)
    mask[1:, 0] = 1
    shape = {"label": "v", "points": [[2.4, 5.4], [4.4, 8.4]], "shape_type": "mask", "mask": png_text(mask)}
    assert np.array_equal(read_shape(tmp_path, shape).shapes[0].bitmap, mask > 0)
    shape["points"] = [[2.4, 5.4], [14.4, 8.4]]
    assert read_shape(tmp_path, shape).invalid[0].code == "bad_mask"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b'{"shapes": [', "line 1, column"),
        (b"[1, 2]", "found a list"),
        (b'"text"', "found a str"),
        (b'{"images": [], "annotations": []}', "COCO"),
        (b'{"version": "5", "imagePath": "x.png"}', "imagePath, version"),
        (b'{"shapes": {"a": 1}}', '"shapes"'),
        (b"\x81\x20\xff\xff{}", "neither UTF-8 nor GBK"),
        (b"[" * 200_000, "JSON"),
    ],
)
def test_files_of_other_formats_are_described(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(LabelmeError) as caught:
        read_labelme(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(("encoding", "notes"), [("utf-8-sig", []), ("gbk", ["encoding"]), ("utf-16", ["encoding"])])
def test_other_encodings(tmp_path: Path, encoding: str, notes: list[str]) -> None:
    text = json.dumps({"shapes": [{"label": "血管", "points": TRIANGLE}]}, ensure_ascii=False)
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(encoding))
    labels = read_labelme(path)
    assert labels.shapes[0].label == "血管"
    assert [code for code, _ in labels.notes] == notes


def test_windows_image_path_and_sizes(tmp_path: Path) -> None:
    labels = read_labelme(
        write(tmp_path, {"shapes": [], "imagePath": "..\\p\\a.png", "imageWidth": 8, "imageHeight": 6})
    )
    assert labels.image_path == "../p/a.png"
    assert labels.size == (8, 6)
    assert read_labelme(write(tmp_path, {"shapes": []})).size is None


@pytest.mark.parametrize("size", [(0, 5), ("800", 800), (1e12, 5), (-3, 5), (None, 5), (float("nan"), 5), (True, True)])
def test_unusable_label_size_is_noted(tmp_path: Path, size: tuple[Any, Any]) -> None:
    labels = read_labelme(write(tmp_path, {"shapes": [], "imageWidth": size[0], "imageHeight": size[1]}))
    assert labels.size is None
    assert [code for code, _ in labels.notes] == ["bad_size"]


@pytest.mark.shared
def test_reads_every_example_version_completely(shared: Path) -> None:
    root = shared / "data" / "labelme_examples"
    entries = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    for entry in entries:
        labels = read_labelme(root / entry["dir"] / entry["json"])
        assert len(labels.shapes) == entry["n_shapes"], entry["json"]
        assert labels.invalid == ()
        kinds = {kind for kind in entry["shape_types"] if kind != "ABSENT/NULL"} or {s.kind for s in labels.shapes}
        assert {shape.kind for shape in labels.shapes} == kinds
        assert (labels.image_data is not None) == entry["imageData"]
    assert len(entries) == 10
