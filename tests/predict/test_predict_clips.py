"""Clips through tools/predict.py: videos, DICOM files and series, DICOM Segmentation objects, several processes."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import ForkProcess
from pathlib import Path

import cv2
import gdcm
import highdicom
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, RLELossless, generate_uid
from torch.distributed import TCPStore

from tests.evaluation.drawn_data import REPOSITORY
from tests.fork_server import python
from tests.imaging.dicom_files import frames, write_dicom
from tests.imaging.drawn_cases import case_folder
from tests.imaging.test_frames import write_video
from tests.labelme_files import run as prepare_labels
from tests.machine_speed import patience
from tests.predict.predict_calls import call, entries, forked, pixels
from tests.tiny import picture
from vesselseg.dataset.manifest import read_manifest
from vesselseg.imaging.frames import FrameSource, open_frames
from vesselseg.inference.predictor import Prediction, Predictor
from vesselseg.predict import clips as clips_module
from vesselseg.predict.clips import ClipWriter, Frames
from vesselseg.predict.dicom_seg import SegmentationObject
from vesselseg.predict.result_files import OverlayVideo, ResultWriter, overlay

STUDY = {"StudyInstanceUID": "1.2.9", "PatientName": "Doe^Jane", "PatientID": "77", "SeriesNumber": 3}


@pytest.fixture(scope="module")
def middle(predictor: Predictor) -> float:
    """A threshold at which masks of `frames` are neither empty nor full."""
    found = predictor.predict([Image.fromarray(frames(1)[0])], [["blood vessel"]])[0]
    return round(float(np.median(found.probabilities)), 4)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A video, a DICOM clip, one DICOM image, and a series of three whose names are in the wrong order."""
    folder = tmp_path / "runs"
    clip = {**STUDY, "SeriesInstanceUID": "1.2.9.1", "SOPInstanceUID": generate_uid(), "FrameTime": "100"}
    clip["PixelSpacing"] = [0.3, 0.3]  # calibrated, and without a position that would give it a plane
    write_dicom(folder / "clip.dcm", frames(4), **clip)
    write_dicom(folder / "one.dcm", frames(1, seed=5), **{**clip, "SeriesInstanceUID": "1.2.9.2"})
    for number, values in enumerate(frames(3, seed=7)):
        own = {"SeriesInstanceUID": "1.2.9.3", "SOPInstanceUID": f"1.2.9.3.{number}", "InstanceNumber": number + 1}
        write_dicom(folder / f"series/{9 - number}", values[None], **STUDY, **own)
    write_video(folder / "run.avi", 5)
    return folder


@pytest.mark.slow
def test_frames_that_the_header_does_not_count_and_single_exposures(model: Path, tmp_path: Path) -> None:
    source = case_folder("dicom_frames_unlike_header") / "source"
    assert call(model, source, tmp_path / "a", "--save", "masks") == 0
    clips = [entry for name, entry in entries(tmp_path / "a").items() if name.endswith(".dcm")]
    assert [len(entry["frames"]) for entry in clips] == [4, 4, 4]
    assert all("holds 4 frames" in str(entry["notes"]) for entry in clips)
    source = case_folder("dicom_single_shots_one_series") / "source"
    assert call(model, source, tmp_path / "b", "--save", "masks") == 0
    found = entries(tmp_path / "b")
    assert {name: entry["source"] for name, entry in found.items()} == {
        f"shot{n}.dcm": f"shot{n}.dcm" for n in range(3)
    }
    assert all(entry["instance"] and "kept apart" in entry["notes"][0] for entry in found.values())


@pytest.mark.slow
def test_clips_give_results_per_frame(
    model: Path, predictor: Predictor, middle: float, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, arguments = tmp_path / "out", ["--threshold", middle, "--save", "masks,probs,overlay,labelme,coco"]
    assert call(model, runs, out, *arguments) == 0
    assert "4 predicted, 0 failed" in capsys.readouterr().out
    found = entries(out)
    kinds = {"clip.dcm": ("dicom", 4), "run.avi": ("video", 5), "series/series_3": ("dicom", 3)}
    assert {name: (found[name]["kind"], len(found[name]["frames"])) for name in kinds} == kinds
    assert [frame["time"] for frame in found["clip.dcm"]["frames"]] == [0, 0.1, 0.2, 0.3]
    series = [(frame["source"], frame["instance"]) for frame in found["series/series_3"]["frames"]]
    assert series == [(f"series/{9 - number}", f"1.2.9.3.{number}") for number in range(3)]
    assert [frame["source_frame"] for frame in found["clip.dcm"]["frames"]] == [1, 2, 3, 4]
    for number, values in enumerate(frames(3, seed=7)):  # by InstanceNumber, not by name
        mask = predictor.predict([Image.fromarray(values)], [["blood vessel"]], middle)[0].masks[0]
        stored = pixels(out / f"masks/series/series_3/0000{number}.png") > 0
        assert 0 < stored.mean() < 1 and (stored != mask).mean() < 1e-3
    for name, (width, height) in {"clip": (40, 30), "series/series_3": (40, 30), "run": (96, 64)}.items():
        video = cv2.VideoCapture(str(out / f"overlays/{name}.mp4"))
        shown = video.read()[1][..., ::-1].astype(int)
        drawn = pixels(out / f"overlays/{name}/00000.png")
        assert shown.shape == drawn.shape == (height, width, 3) and abs(shown - drawn).mean() < 40
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5, rel=0.01)
    coco = COCO(out / "coco.json")
    assert {item["file_name"] for item in coco.imgs.values()} >= {"one.dcm", "clip.dcm/00003", "run.avi/00000"}
    assert {item["source"] for item in coco.imgs.values()} >= {"one.dcm", "clip.dcm", "run.avi", "series/7"}
    assert call(model, runs, out, *arguments) == 0 and "4 finished before" in capsys.readouterr().out
    (out / "masks/clip/00002.png").unlink()
    assert call(model, runs, out, *arguments) == 0 and "1 predicted, 3 finished" in capsys.readouterr().out
    # LabelMe opens no clips, so their images are next to the labels; docs/predicting.md has the pattern
    prepare_labels(out / "labelme", tmp_path / "data", group_regex=r".+(?=/\d{5})")
    groups = Counter(record.group_key for record in read_manifest(tmp_path / "data"))
    assert groups == {"clip": 4, "run": 5, "series/series_3": 3, "one.png": 1}


def test_a_damaged_clip_leaves_no_files(model: Path, runs: Path, tmp_path: Path) -> None:
    header = dcmread(runs / "clip.dcm")
    header.compress(RLELossless)
    header.save_as(runs / "clip.dcm")
    content = (runs / "clip.dcm").read_bytes()
    third = content.rindex(b"\xfe\xff\x00\xe0", 0, content.rindex(b"\xfe\xff\x00\xe0"))
    (runs / "clip.dcm").write_bytes(content[: third + 8] + b"\x0f" + content[third + 9 :])  # 15 segments
    assert call(model, runs, tmp_path / "out", "--batch", 1) == 1
    found = entries(tmp_path / "out")
    assert "frame 3 of 4" in found["clip.dcm"]["error"] or "damaged" in found["clip.dcm"]["error"]
    assert not list((tmp_path / "out").glob("*/clip*/*")) and not list((tmp_path / "out").rglob("*.part*"))
    assert "frames" in found["run.avi"]


@pytest.fixture
def clip(tmp_path: Path) -> FrameSource:
    return open_frames("run.avi", write_video(tmp_path / "run.avi", 5).read_bytes())


def drawn_predictions(clip: FrameSource, seed: int) -> list[Prediction]:
    width, height = clip.size
    found = np.random.default_rng(seed).random((clip.frames, 1, height, width), dtype=np.float32)
    return [Prediction(values, values > 0.5, ("vessel",), 0.5) for values in found]


def write_with(out: Path, clip: FrameSource, predictions: list[Prediction], threads: int) -> list[str]:
    writer = ResultWriter(out, ("vessel",), ("masks", "overlay"))
    with ThreadPoolExecutor(threads) as pool:
        frames = Frames(clip, cache_size=9)
        return ClipWriter("clip", frames, writer, None, pool, lambda found: found, lambda _: {}).write(predictions)[1]


def test_overlays_are_drawn_once_and_the_video_gets_them_in_order(
    clip: FrameSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the second frame is drawn before the first."""
    predictions, second, drawn = drawn_predictions(clip, seed=1), threading.Event(), []

    def late(image: Image.Image, prediction: Prediction) -> np.ndarray:
        if prediction is predictions[0]:
            assert second.wait(patience(60))
        drawn.append(overlay(image, prediction))
        if prediction is predictions[1]:
            second.set()
        return drawn[-1]

    monkeypatch.setattr(clips_module, "overlay", late)
    monkeypatch.setattr("vesselseg.predict.result_files.overlay", late)
    outputs = write_with(tmp_path / "out", clip, predictions, threads=2)
    assert len(drawn) == clip.frames == 5 and outputs[-1] == "overlays/clip.mp4"
    video = OverlayVideo(tmp_path, "expected", clip.frame_times)
    for number, prediction in enumerate(predictions):
        expected = overlay(clip.frame(number), prediction)
        assert (pixels(tmp_path / f"out/overlays/clip/{number:05}.png") == expected).all()
        video.add(expected)
    video.close(finished=True)
    assert (tmp_path / "out/overlays/clip.mp4").read_bytes() == (tmp_path / video.name).read_bytes()


def test_a_frame_that_cannot_be_written_removes_the_clip(clip: FrameSource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "masks/clip/00003.png").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_with(out, clip, drawn_predictions(clip, seed=1), threads=1)
    assert [path.name for path in out.rglob("*") if path.is_file() and path.suffix != ".part"] == []


def gdcm_masks(path: Path) -> np.ndarray:
    """(frames, height, width) bool of a binary segmentation, read by GDCM, which is independent of highdicom."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    image = reader.GetImage()
    columns, rows, *count = image.GetDimensions()
    content = image.GetBuffer().encode("utf-8", "surrogateescape")
    assert image.GetPixelFormat().GetBitsAllocated() == 1
    bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
    return bits[: (count[0] if count else 1) * rows * columns].reshape(-1, rows, columns).astype(bool)


@pytest.mark.slow
def test_dicom_segmentations_hold_the_masks(model: Path, middle: float, runs: Path, tmp_path: Path) -> None:
    out, phrases = tmp_path / "out", ["left coronary artery", "catheter"]
    arguments = [text for phrase in phrases for text in ("--phrase", phrase)]
    assert call(model, runs, out, *arguments, "--threshold", middle, "--save", "masks,dicom-seg") == 1  # the video
    assert "no DICOM file, which dicom-seg needs" in entries(out)["run.avi"]["error"]
    sources = {"clip": [runs / "clip.dcm"], "one": [runs / "one.dcm"], "series/series_3": sorted(runs.glob("series/*"))}
    for name, paths in sources.items():
        made = dcmread(out / f"dicom-seg/{name}.dcm")
        read = gdcm_masks(out / f"dicom-seg/{name}.dcm")
        count = {"clip": 4, "one": 1}.get(name, 3)
        assert len(read) == made.NumberOfFrames == count * len(phrases)
        for groups, mask in zip(made.PerFrameFunctionalGroupsSequence, read):
            segment, frame = groups.FrameContentSequence[0].DimensionIndexValues
            tag = ("_left_coronary_artery", "_catheter")[segment - 1]
            place = f"{name}{tag}" if name == "one" else f"{name}/{frame - 1:05d}{tag}"
            np.testing.assert_array_equal(mask, pixels(out / f"masks/{place}.png") > 0)
            _check_source(groups, sorted(paths, reverse=True), frame, clip=name == "clip")
        assert (made.PatientName, made.PatientID, made.StudyInstanceUID) == ("Doe^Jane", "77", "1.2.9")
        _check_segments(made, entries(out)["one.dcm"]["model"])
        again = highdicom.seg.segread(out / f"dicom-seg/{name}.dcm")
        assert again.number_of_segments == 2
        np.testing.assert_array_equal(again.pixel_array.reshape(read.shape).astype(bool), read)


def _check_source(groups: Dataset, paths: list[Path], frame: int, clip: bool) -> None:
    source = groups.DerivationImageSequence[0].SourceImageSequence[0]
    header = dcmread(paths[frame - 1 if len(paths) > 1 else 0])
    assert source.ReferencedSOPInstanceUID == header.SOPInstanceUID
    assert source.ReferencedSOPClassUID == header.SOPClassUID
    assert source.get("ReferencedFrameNumber") == (frame if clip else None)


def _check_segments(made: Dataset, fingerprint: str) -> None:
    artery, catheter = made.SegmentSequence
    assert (artery.SegmentLabel, catheter.SegmentLabel) == ("left coronary artery", "catheter")
    coded = artery.SegmentedPropertyTypeCodeSequence[0], catheter.SegmentedPropertyCategoryCodeSequence[0]
    assert [code.CodeValue for code in coded] == ["41801008", "260787004"]  # coronary artery, physical object
    assert fingerprint in artery.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName


@pytest.mark.parametrize("apart", [True, False])
def test_slices_keep_their_position_in_the_patient(model: Path, middle: float, tmp_path: Path, apart: bool) -> None:
    slices, plane = tmp_path / "in", {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.4, 0.5]}
    shared = {**STUDY, **plane, "SeriesInstanceUID": "1.2.9.3", "FrameOfReferenceUID": "1.2.9.4", "Modality": "CT"}
    heights = [5.0, 2.5, 0.0] if apart else [5.0, 2.5, 2.5]  # highdicom sorts them the other way round
    for number, (values, height) in enumerate(zip(frames(3, seed=7), heights)):
        own = {"SOPInstanceUID": f"1.2.9.3.{number}", "InstanceNumber": number + 1}
        place = {"ImagePositionPatient": [-9, -8, height], "SOPClassUID": CTImageStorage}
        write_dicom(slices / f"{number}.dcm", values[None], **shared, **own, **place)
    arguments = ("--phrase", "left coronary artery", "--phrase", "catheter", "--threshold", middle)
    assert call(model, slices, tmp_path / "out", *arguments, "--save", "masks,dicom-seg") == 0
    [file] = (tmp_path / "out/dicom-seg").glob("*.dcm")
    made, read = dcmread(file), gdcm_masks(file)
    assert len(read) == 6 and ("FrameOfReferenceUID" in made) == apart
    for groups, mask in zip(made.PerFrameFunctionalGroupsSequence, read):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number, segment = int(source.rpartition(".")[2]), groups.FrameContentSequence[0].DimensionIndexValues[0]
        tag = ("left_coronary_artery", "catheter")[segment - 1]
        np.testing.assert_array_equal(mask, pixels(tmp_path / f"out/masks/{file.stem}/{number:05d}_{tag}.png") > 0)
        if apart:
            assert groups.PlanePositionSequence[0].ImagePositionPatient == [-9, -8, heights[number]]
    if apart:
        shared_groups = made.SharedFunctionalGroupsSequence[0]
        assert shared_groups.PixelMeasuresSequence[0].PixelSpacing == [0.4, 0.5]
        assert made.FrameOfReferenceUID == "1.2.9.4" and made.PatientID == "77"
    _check_segments(made, entries(tmp_path / "out")[f"{file.stem}"]["model"])


def test_a_header_without_uids_is_refused_by_dicom_seg(model: Path, tmp_path: Path) -> None:
    write_dicom(tmp_path / "in/a.dcm", frames(1))
    assert call(model, tmp_path / "in", tmp_path / "out", "--save", "dicom-seg") == 1
    assert "lacks StudyInstanceUID, SeriesInstanceUID" in entries(tmp_path / "out")["a.dcm"]["error"]


def test_a_phrase_has_the_same_code_in_every_file(tmp_path: Path) -> None:
    """A private code, if no SNOMED CT code matches the phrase."""
    write_dicom(tmp_path / "a.dcm", frames(1), **STUDY, SeriesInstanceUID="1.2.9.1")
    found = set()
    for phrases in (["stent"], ["guide wire", "stent"], ["aorta", "guide wire"]):
        made = SegmentationObject([tmp_path / "a.dcm"], phrases, "0123")
        made.add(np.zeros((len(phrases), *frames(1).shape[1:]), bool))
        coded = dcmread(io.BytesIO(made.content())).SegmentSequence
        types = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in coded]
        found |= {(code.CodeValue, code.CodeMeaning, code.CodingSchemeDesignator) for code in types}
    own = [meaning for _, meaning, scheme in sorted(found) if scheme == "99VESSELSEG"]
    assert sorted(own) == ["guide wire", "stent"] and len({code for code, _, _ in found}) == 3


def test_a_header_that_highdicom_refuses_leaves_no_results(model: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Invalid value"):
        write_dicom(tmp_path / "in/a.dcm", frames(1), **STUDY, SeriesInstanceUID="1.2.9.1", StudyDate="someday")
    assert call(model, tmp_path / "in", tmp_path / "out", "--save", "masks,overlay,dicom-seg") == 1
    assert "highdicom rejects the header" in entries(tmp_path / "out")["a.dcm"]["error"]
    assert {path.suffix for path in (tmp_path / "out").rglob("*.*")} == {".json", ".jsonl"}


def torchrun(model: Path, source: Path, out: Path) -> subprocess.Popen[str]:
    """Two processes; the address is given, because not every machine can resolve its own name."""
    launcher = [
        python(),
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr",
        "127.0.0.1",
        "--nproc-per-node",
        "2",
    ]
    command = [*launcher, "tools/predict.py", model, source, "--out", out, "--device", "cpu", "--batch", "1"]
    return subprocess.Popen(
        list(map(str, command)), cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@contextmanager
def ranks(model: Path, source: Path, out: Path, second_ends_at: int) -> Iterator[tuple[ForkProcess, ForkProcess]]:
    """Two processes as torchrun starts them: this one hosts their store, whose port is bound before they connect."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    first = forked(model, source, out, "--batch", 1, **place, RANK="0")
    second = forked(model, source, out, "--batch", 1, ends_at=second_ends_at, **place, RANK="1")
    try:
        yield first, second
    finally:
        for process in (first, second):
            process.kill()
            process.join()


def recorded(out: Path) -> list[str]:
    """Files in the state files of all processes; text after the last newline is a line that a kill truncated."""
    lines = [line for path in out.glob("*.jsonl") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return [json.loads(line)["file"] for line in lines]


@pytest.mark.process
def test_two_processes_share_the_files_and_one_is_killed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(30):
        picture(number % 3).save(source / f"{number}.png")
    with ranks(model, source, out, second_ends_at=5) as (first, second):
        second.join()
        assert first.is_alive(), "it is working, or waiting for the other"
        first.terminate()  # as torchrun does in this case
        first.join()
        assert (first.exitcode, second.exitcode) == (-signal.SIGTERM, -signal.SIGKILL)
    done = recorded(out)
    assert 5 <= len(done) == len(set(done)) < 30
    (source / "broken.png").touch()
    process = torchrun(model, source, out)
    printed, complaints = process.communicate()
    assert process.returncode == 1 and "broken.png: the file is empty" in complaints
    assert f"{30 - len(done)} predicted, {len(done)} finished before, 1 failed" in printed
    assert printed.count("predicted") == 1 and not list(out.glob("*.rank*"))
    assert len(recorded(out)) == len(set(recorded(out))) == 31 and len(list(out.glob("masks/*.png"))) == 30
    (source / "broken.png").unlink()
    assert call(model, source, out) == 0  # one process continues where two stopped
    assert "0 predicted, 30 finished before" in capsys.readouterr().out
