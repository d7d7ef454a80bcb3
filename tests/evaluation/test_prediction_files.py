"""NIfTI, TIFF and the folders of nnU-Net and MedSAM: read as they were written, or refused with a reason."""

from __future__ import annotations

import gzip
import itertools
import struct
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.command_line import call_command
from tests.evaluation.drawn_data import Drawn
from vesselseg.evaluation import prediction_files
from vesselseg.evaluation.errors import EvaluationError
from vesselseg.evaluation.prediction_files import read_prediction
from vesselseg.evaluation.prediction_folder import PredictionFolder

MASK = np.zeros((6, 8), np.uint8)
MASK[0, :5] = MASK[:3, 0] = MASK[4, 6] = 1  # no flip, turn or transposition of it is itself
PROBABILITIES = np.random.default_rng(0).random((6, 8), dtype=np.float32)
ITK = np.diag([-0.3, -0.3, 1.0, 1.0])  # what SimpleITK writes for an image without geometry: spacing, LPS -> RAS
SIZE = {"a.png": (6, 8)}


def nifti(values: np.ndarray, affine: np.ndarray = ITK) -> nibabel.Nifti1Image:
    """A (rows, columns) picture as ITK stores it."""
    return nibabel.Nifti1Image(values.T[..., None], affine)


def read(path: Path) -> np.ndarray:
    return read_prediction(path).probabilities(None)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("values", [MASK, MASK * 255, MASK.astype(np.int16), PROBABILITIES], ids=str)
def test_nifti_comes_back(tmp_path: Path, ending: str, values: np.ndarray) -> None:
    path = tmp_path / f"a{ending}"
    nibabel.save(nifti(values), path)
    expected = values if values.dtype == np.float32 else MASK
    np.testing.assert_array_equal(read(path), expected)


@pytest.mark.parametrize("first", ["LR", "PA"])
@pytest.mark.parametrize("signs", itertools.product((0, 1), repeat=3))
def test_nifti_in_every_orientation_comes_back(tmp_path: Path, first: str, signs: tuple[int, int, int]) -> None:
    """Another program may store the same image with any axis flipped and both swapped, and say so in the header."""
    axes = (first, "PA" if first == "LR" else "LR", "SI")
    codes = tuple(pair[sign] for pair, sign in zip(axes, signs))
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(ITK), nibabel.orientations.axcodes2ornt(codes))
    turned = nifti(MASK).as_reoriented(turn)
    assert nibabel.aff2axcodes(turned.affine) == codes
    nibabel.save(turned, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz"), MASK)


def test_nifti_without_geometry_is_taken_as_it_is_stored(tmp_path: Path) -> None:
    nibabel.save(nifti(MASK, np.eye(4)), tmp_path / "identity.nii")
    nibabel.save(nibabel.Nifti1Image(MASK.T, None), tmp_path / "none.nii")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read(path), MASK)


def test_broken_nifti_is_listed_with_its_reason(tmp_path: Path) -> None:
    nibabel.save(nifti(PROBABILITIES), tmp_path / "cut.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "cut.nii.gz").read_bytes()[:120])
    nibabel.save(nifti(PROBABILITIES), tmp_path / "short.nii")
    (tmp_path / "short.nii").write_bytes((tmp_path / "short.nii").read_bytes()[:-40])
    (tmp_path / "text.nii").write_text("no NIfTI")
    (tmp_path / "no_gzip.nii.gz").write_bytes(b"no gzip")
    (tmp_path / "empty.nii").touch()
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 6, 3), np.uint8), ITK), tmp_path / "volume.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8,), np.uint8), ITK), tmp_path / "line.nii")
    nibabel.save(nifti(MASK * 3), tmp_path / "labels.nii")
    nibabel.save(nifti(PROBABILITIES * 7), tmp_path / "logits.nii")
    nibabel.save(nifti(MASK.T), tmp_path / "turned.nii")
    sizes = {f"{path.name.split('.')[0]}.png": (6, 8) for path in tmp_path.iterdir()}
    with pytest.raises(EvaluationError) as caught:
        PredictionFolder(tmp_path, sizes).check(sizes)
    message = str(caught.value)
    assert "unusable predictions: 10" in message
    for name in ("cut.nii.gz", "short.nii", "text.nii", "no_gzip.nii.gz", "empty.nii"):
        assert f"{name}: not readable as NIfTI: " in message
    assert "volume.nii: NIfTI of 8 x 6 x 3; expected one slice" in message
    assert "line.nii: NIfTI of 8; expected" in message
    assert "labels.nii: integers 0, 3; expected a mask" in message
    assert "logits.nii: values" in message
    assert "turned.nii: 8 x 6 (height x width), but turned.png is 6 x 8" in message


@pytest.mark.parametrize("ending", [".nii", ".npy", ".npz"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".nii":
        nibabel.save(nifti(MASK), path)
    else:
        {".npy": np.save, ".npz": np.savez_compressed}[ending](path, MASK)
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= int(generator.integers(1, 256))
        path.write_bytes(changed)
        try:
            assert read_prediction(path).values.ndim == 2
        except ValueError:
            refused += 1
    assert refused > 40


def _nnunet(folder: Path, values: np.ndarray, key: str = "probabilities") -> Path:
    """What nnUNetv2_predict --save_probabilities leaves: mask, probabilities and files that are no prediction."""
    Image.fromarray((values[-1, 0] > 0.5).astype(np.uint8)).save(folder / "a.png")
    np.savez_compressed(folder / "a.npz", **{key: values})
    (folder / "a.pkl").write_bytes(b"properties")
    for name in ("dataset.json", "plans.json", "predict_from_raw_data_args.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("key", ["probabilities", "softmax"])
def test_a_folder_of_nnunet(tmp_path: Path, key: str) -> None:
    channels = np.stack([1 - PROBABILITIES, PROBABILITIES])[:, None].astype(np.float16)
    channels[:, :, 0] = 0  # rows outside nnU-Net's crop: no class at all
    predictions = PredictionFolder(_nnunet(tmp_path, channels, key), SIZE)
    predictions.check(SIZE)
    assert predictions.holds_probabilities
    expected = np.vstack([np.zeros((1, 8)), PROBABILITIES[1:]])
    np.testing.assert_allclose(predictions.probabilities("a.png", (6, 8)), expected, atol=1e-3)


def test_a_folder_of_nnunet_with_one_region_or_with_masks_alone(tmp_path: Path) -> None:
    predictions = PredictionFolder(_nnunet(tmp_path, PROBABILITIES[None, None]), SIZE)
    np.testing.assert_array_equal(predictions.probabilities("a.png", (6, 8)), PROBABILITIES)
    (tmp_path / "a.npz").unlink()
    predictions = PredictionFolder(tmp_path, SIZE)
    predictions.check(SIZE)
    assert not predictions.holds_probabilities
    np.testing.assert_array_equal(predictions.probabilities("a.png", (6, 8)), PROBABILITIES > 0.5)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"probabilities": np.full((2, 1, 6, 8), 0.9, np.float32)}, "two classes that do not add up to 1"),
        ({"probabilities": np.full((3, 1, 6, 8), 1 / 3, np.float32)}, r"3 x 1 x 6 x 8; expected probabilities as \(2"),
        ({"probabilities": np.full((2, 4, 6, 8), 0.5, np.float32)}, "4 x 6 x 8; expected one image"),
        ({"x": MASK, "y": MASK}, "arrays x, y; expected a single one"),
        ({}, "arrays none"),
    ],
)
def test_other_archives_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=reason):
        read_prediction(tmp_path / "a.npz")


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=PROBABILITIES)
    whole = (tmp_path / "a.npz").read_bytes()
    for content in (b"", b"text", whole[:60], whole[:90] + bytes(40) + whole[130:]):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"not readable as an \.npz"):
            read_prediction(tmp_path / "a.npz")


def test_names_of_medsam_and_flat_folders(tmp_path: Path) -> None:
    """MedSAM_Inference.py writes seg_NAME.png with 0 and 1, its evaluation reads .npz with segs."""
    Image.fromarray(MASK).save(tmp_path / "seg_a.png")
    np.savez_compressed(tmp_path / "b.npz", segs=MASK)
    sizes = {"one/a.jpg": (6, 8), "two/b.jpg": (6, 8)}
    predictions = PredictionFolder(tmp_path, sizes)
    predictions.check(sizes)
    for name in sizes:
        np.testing.assert_array_equal(predictions.probabilities(name, (6, 8)), MASK)
    with pytest.raises(EvaluationError, match=r"seg_a\.png: matches no image"):
        PredictionFolder(tmp_path, [*sizes, "two/a.jpg"])  # two images called a: which is meant?


def test_an_image_that_is_called_seg_something_keeps_its_prediction(tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "seg_a.png")
    Image.fromarray(1 - MASK).save(tmp_path / "a.png")
    predictions = PredictionFolder(tmp_path, ["a.jpg", "seg_a.jpg"])
    np.testing.assert_array_equal(predictions.probabilities("seg_a.jpg", (6, 8)), MASK)
    np.testing.assert_array_equal(predictions.probabilities("a.jpg", (6, 8)), 1 - MASK)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_tiff(tmp_path: Path, compression: str | None) -> None:
    for values in (MASK * 255, (PROBABILITIES * 255).astype(np.uint8), PROBABILITIES):
        Image.fromarray(values).save(tmp_path / "a.tif", compression=compression)
        predictions = PredictionFolder(tmp_path, SIZE)
        predictions.check(SIZE)
        found = predictions.probabilities("a.png", (6, 8))
        expected = values / 255 if values.dtype == np.uint8 else values
        np.testing.assert_allclose(found, expected, atol=1e-6)
    pages = [Image.fromarray(MASK)] * 2
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="2 pages"):
        read_prediction(tmp_path / "a.tif")


def test_a_mask_saved_with_16_bits_is_a_mask(tmp_path: Path) -> None:
    for largest in (1, 255, 65535):
        Image.fromarray(MASK.astype(np.uint16) * largest).save(tmp_path / "a.png")
        predictions = PredictionFolder(tmp_path, SIZE)
        predictions.check(SIZE)
        assert not predictions.holds_probabilities
        np.testing.assert_array_equal(predictions.probabilities("a.png", (6, 8)), MASK)


def test_the_tool_lists_missing_extra_and_wrongly_sized_files(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    arguments = (folder, "--data", drawn.folder, "--split", "test", "--out", tmp_path / "out")
    for number, record in enumerate(drawn.records("test")[:3]):
        path = folder / f"{record.image[:-4]}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nibabel.save(nifti(drawn.truth(record)[number:].astype(np.uint8)), path)
    assert call_command("eval", *arguments) == 2
    message = capsys.readouterr().err
    assert "images without a prediction: 2" in message and "test/case4.png: expected test/case4 with" in message
    for record in drawn.records("test")[3:]:
        nibabel.save(nifti(drawn.truth(record).astype(np.uint8)), folder / f"{record.image[:-4]}.nii.gz")
    assert call_command("eval", *arguments) == 2
    message = capsys.readouterr().err
    assert "unusable predictions: 2" in message
    assert "test/case1.nii.gz: 71 x 96 (height x width), but test/case1.png is 72 x 96" in message
    (folder / "more.nii.gz").touch()
    assert call_command("eval", *arguments) == 2
    assert "more.nii.gz: matches no image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_arrays_that_grow_are_refused_before_they_take_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_files, "LARGEST_BYTES", 4_000_000)
    zeros = np.zeros((5000, 5000), np.uint8)  # 25 MB
    np.savez_compressed(tmp_path / "a.npz", segs=zeros)
    np.save(tmp_path / "a.npy", zeros)
    nibabel.save(nifti(zeros), tmp_path / "a.nii.gz")
    for name in ("a.npz", "a.npy", "a.nii.gz"):
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match="more than 3 MiB"):
                read(tmp_path / name)
            assert tracemalloc.get_traced_memory()[1] < 4_000_000, name
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("size", [2**31 - 1, 400_000, 4, -16])
def test_an_extension_of_a_nifti_header_has_bounds(tmp_path: Path, size: int) -> None:
    nibabel.save(nifti(MASK), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[348] = 1
    content[108:112] = struct.pack("<f", 352 + 32)
    content[352:352] = struct.pack("<ii", size, 4) + bytes(24)
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write(content)
    with pytest.raises(ValueError, match=f"a header extension of {size} bytes"):
        read(tmp_path / "a.nii.gz")
    content[352:356] = struct.pack("<i", 32)
    (tmp_path / "good.nii").write_bytes(content)
    np.testing.assert_array_equal(read(tmp_path / "good.nii"), MASK)
