"""Edited LabelMe files are never overwritten or deleted by a later call of vesselseg predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from tests.command_line import call_command
from tests.imaging.dicom_files import frames, write_dicom
from tests.labelme_files import run as prepare_labels
from tests.predict.predict_calls import call, entries, forked
from tests.tiny import picture
from vesselseg.dataset.manifest import read_manifest
from vesselseg.inference.predictor import Predictor
from vesselseg.predict.result_files import ResultWriter

LABELS = "labelme,overlay"


def edit(path: Path) -> bytes:
    """Edit a file as LabelMe saves it: its fields are kept, and one shape is drawn by hand."""
    content = json.loads(path.read_text(encoding="utf-8"))
    phrase = content["vesselseg"]["phrases"][0]
    shape = {"label": phrase, "points": [[1, 1], [20, 1], [20, 20]], "shape_type": "polygon", "group_id": None}
    path.write_text(json.dumps({**content, "shapes": [shape], "imageData": None}), encoding="utf-8")
    return path.read_bytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(("one", "two", "three")):
        picture(number).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def corrected(model: Path, middle: float, source: Path, tmp_path: Path) -> tuple[Path, bytes]:
    """A result folder, and the content of its one.json after editing."""
    assert call(model, source, tmp_path / "out", "--save", LABELS, "--threshold", middle) == 0
    return tmp_path / "out", edit(tmp_path / "out/labelme/one.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        ["--save", "labelme,overlay,masks"],
        ["--save", LABELS, "--threshold", "0.45"],
        ["--save", LABELS, "--tta", "flips"],
        ["--save", LABELS, "--phrase", "catheter"],
    ],
)
def test_a_changed_call_overwrites_none(
    changed: list[str],
    model: Path,
    source: Path,
    corrected: tuple[Path, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, mine = corrected
    others = (out / "overlays/one.png").stat().st_mtime_ns
    capsys.readouterr()
    assert call(model, source, out, *changed) == 0
    printed = capsys.readouterr().out
    assert "were edited: 1 (labelme/one.json)" in printed and "delete or move them" in printed
    assert (out / "labelme/one.json").read_bytes() == mine and (out / "overlays/one.png").stat().st_mtime_ns > others
    assert call(model, source, out, *changed) == 0
    printed = capsys.readouterr().out
    assert "0 predicted, 3 finished before" in printed and "edited" not in printed, "it is reported once"
    (out / "labelme/one.json").unlink()
    assert call(model, source, out, *changed) == 0
    assert "1 predicted, 2 finished before" in capsys.readouterr().out
    assert len(json.loads((out / "labelme/one.json").read_text())["shapes"]) != 1, "the model's labels are back"


@pytest.mark.slow
def test_no_call_deletes_an_edited_file(
    model: Path, source: Path, corrected: tuple[Path, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    out, mine = corrected
    (source / "one.png").write_bytes(b"broken")
    assert call(model, source, out, "--save", LABELS) == 1
    assert "were edited: 1 (labelme/one.json)" in capsys.readouterr().out and "error" in entries(out)["one.png"]
    assert call(model, source, out, "--save", "masks") == 1
    assert [path.read_bytes() for path in (out / "labelme").rglob("*")] == [mine]
    picture(0).save(source / "one.png")
    assert call(model, source, out, "--save", LABELS) == 0
    assert "were edited: 1 (labelme/one.json)" in capsys.readouterr().out
    edit(out / "labelme/two.json")
    assert call(model, source, out, "--save", "masks") == 0
    printed = capsys.readouterr().out
    assert "were edited: 2 (labelme/one.json, labelme/two.json)" in printed and "delete or move" not in printed
    assert sorted(path.name for path in (out / "labelme").iterdir()) == ["one.json", "two.json"]
    assert (out / "labelme/one.json").read_bytes() == mine


def test_a_failed_write_deletes_no_edited_file(
    model: Path, source: Path, corrected: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, mine = corrected
    label_file = ResultWriter._label_file

    def failing(*arguments: Any) -> Any:
        yield from label_file(*arguments)
        raise MemoryError

    monkeypatch.setattr(ResultWriter, "_label_file", failing)
    assert call(model, source, out, "--save", "labelme,masks") == 1
    assert [path.read_bytes() for path in (out / "labelme").iterdir()] == [mine]
    assert not list(out.glob("masks/*.png"))


def forget(out: Path) -> None:
    """Turn the folder into one of a version that kept no records."""
    state = out / "predictions.jsonl"
    lines = [line for line in state.read_text(encoding="utf-8").split("\n") if '"labelme": "' not in line]
    state.write_text("\n".join(lines).replace('"format": 6', '"format": 5'), encoding="utf-8")
    for path in (out / "labelme").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("vesselseg", None)
        path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.slow
def test_without_a_record_a_different_file_counts_as_edited(
    model: Path, middle: float, source: Path, corrected: tuple[Path, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = corrected
    forget(out)
    mine = (out / "labelme/one.json").read_bytes()
    assert call(model, source, out, "--save", LABELS, "--threshold", middle) == 0
    printed = capsys.readouterr().out
    assert "3 predicted" in printed and "were edited: 1 (labelme/one.json)" in printed
    assert (out / "labelme/one.json").read_bytes() == mine
    assert "vesselseg" in json.loads((out / "labelme/two.json").read_text())
    forget(out)
    assert call(model, source, out, "--save", "masks") == 0
    assert "were edited: 3 (" in capsys.readouterr().out and len(list((out / "labelme").iterdir())) == 3


def test_files_of_a_killed_run_do_not_count_as_edited(
    model: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is recorded before it is written, so it is known although its image was never recorded as done."""
    out, state = tmp_path / "out", tmp_path / "out/predictions.jsonl"
    assert call(model, source, out, "--save", "labelme") == 0
    lines = [json.loads(line) for line in state.read_text(encoding="utf-8").splitlines()]
    records = [line for line in lines if "outputs" not in line]
    assert sorted(record["labelme"] for record in records) == [f"labelme/{n}.json" for n in ("one", "three", "two")]
    state.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert call(model, source, out, "--save", "labelme", "--phrase", "catheter") == 0
    assert "edited" not in capsys.readouterr().out
    for path in (out / "labelme").iterdir():
        assert json.loads(path.read_text())["vesselseg"] == {"phrases": ["catheter"]}


def test_a_file_is_recorded_before_it_is_written(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, state = ResultWriter._file, tmp_path / "out/predictions.jsonl"
    recorded: list[bool] = []

    def noted(self: ResultWriter, name: str, content: bytes) -> str:
        recorded.append(f'"labelme": "{name}"' in state.read_text(encoding="utf-8"))
        return write(self, name, content)

    monkeypatch.setattr(ResultWriter, "_file", noted)
    assert call(model, source, tmp_path / "out", "--save", "labelme") == 0 and recorded == [True] * 3


@pytest.mark.slow
def test_an_edited_frame_keeps_its_image(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in/run.dcm", tmp_path / "out"
    write_dicom(source, frames(3, seed=1))
    assert call(model, source, out, "--save", "labelme") == 0
    labels = out / "labelme/run"
    mine, shown = edit(labels / "00001.json"), (labels / "00001.png").read_bytes()
    for changed, status in ((frames(3, seed=2), 0), (None, 1)):
        source.unlink()
        if changed is None:
            source.write_bytes(b"broken")
        else:
            write_dicom(source, changed)
        assert call(model, source, out, "--save", "labelme") == status
        assert "were edited: 1 (labelme/run/00001.json)" in capsys.readouterr().out
        assert (labels / "00001.json").read_bytes() == mine and (labels / "00001.png").read_bytes() == shown
    assert sorted(path.name for path in labels.iterdir()) == ["00001.json", "00001.png"]


@pytest.mark.slow
def test_a_clip_that_fails_halfway_deletes_no_edited_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in/run.dcm", tmp_path / "out"
    write_dicom(source, frames(4, seed=1))
    assert call(model, source, out, "--save", "labelme") == 0
    mine = edit(out / "labelme/run/00000.json")

    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Predictor, "to_probabilities", full)
    assert call(model, source, out, "--save", "labelme,masks") == 1
    assert (out / "labelme/run/00000.json").read_bytes() == mine
    assert sorted(path.name for path in (out / "labelme/run").iterdir()) == ["00000.json", "00000.png"]


@pytest.mark.slow
def test_several_processes_keep_edited_files(
    model: Path, middle: float, source: Path, corrected: tuple[Path, bytes]
) -> None:
    """Each process keeps its own; the main process reports all."""
    out, _ = corrected
    mine = {name: edit(out / f"labelme/{name}.json") for name in ("one", "two", "three")}
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    arguments = ["--save", "labelme,masks", "--threshold", middle]
    ranks = [forked(model, source, out, *arguments, ends_at=0, **place, RANK=str(rank)) for rank in (0, 1)]
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    assert {name: (out / f"labelme/{name}.json").read_bytes() for name in mine} == mine
    assert len(list((out / "masks").iterdir())) == 3


def test_corrections_and_phrases_become_training_data(model: Path, middle: float, source: Path, tmp_path: Path) -> None:
    """No option is needed; --text and --labels decide as for any other labels."""
    out, arguments = tmp_path / "out", ["--phrase", "catheter", "--phrase", "left  main"]
    assert call(model, source, out, "--save", "labelme", "--threshold", middle, *arguments) == 0
    edit(out / "labelme/one.json")
    content = json.loads((out / "labelme/two.json").read_text())
    (out / "labelme/two.json").write_text(json.dumps({**content, "shapes": []}))
    report = prepare_labels(out / "labelme", tmp_path / "data")
    assert {finding["code"] for finding in report["findings"]} <= {"empty_split"}
    records = {record.image: record for record in read_manifest(tmp_path / "data")}
    assert records["one.png"].phrases == ("catheter",)
    assert records["two.png"].phrases == ("catheter", "left main") and not any(records["two.png"].regions)
    assert set(records["three.png"].phrases) == {"catheter", "left main"}
    assert {(row["label"], row["phrase"]) for row in report["labels"]} == {
        ("catheter", "catheter"),
        ("left main", "left main"),
    }
    for name, options in (("text", {"text": "artery"}), ("map", {"labels": {"catheter": "artery", "left main": None}})):
        prepare_labels(out / "labelme", tmp_path / name, **options)
        phrases = {record.image: record.phrases for record in read_manifest(tmp_path / name)}
        assert phrases["one.png"] == phrases["three.png"] == ("artery",)


def test_a_label_typed_by_hand_is_reported(model: Path, middle: float, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(model, source, out, "--save", "labelme", "--threshold", middle) == 0
    content = json.loads((out / "labelme/one.json").read_text())
    shapes = [{**content["shapes"][0], "label": "vessel"}, *content["shapes"][1:]]
    (out / "labelme/one.json").write_text(json.dumps({**content, "shapes": shapes}))
    report = prepare_labels(out / "labelme", tmp_path / "data")
    [finding] = [finding for finding in report["findings"] if finding["code"] != "empty_split"]
    assert finding["file"] == "one.json" and finding["code"] == "other_phrase" and "'vessel'" in finding["reason"]


def test_preparing_reports_the_phrases(
    model: Path, middle: float, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, arguments = tmp_path / "out", ["--phrase", "catheter", "--phrase", "blood vessel"]
    assert call(model, source, out, "--save", "labelme", "--threshold", middle, *arguments) == 0
    assert call_command("prepare", out / "labelme", "--out", tmp_path / "data", "--quiet") == 0
    printed = capsys.readouterr().out
    assert "labels that are phrases, as vesselseg predict was asked for them: blood vessel, catheter" in printed
    assert "read as" not in printed
    assert call_command("prepare", out / "labelme", "--out", tmp_path / "one", "--text", "artery", "--quiet") == 0
    printed = capsys.readouterr().out
    assert "labels: all 2 read as 'artery'; --labels tells them apart" in printed and "that are phrases" not in printed
