"""The image of a LabelMe file: where it is searched, damaged files, and the stored form."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vesselseg.imaging.decode import ImageError
from vesselseg.imaging.label_shapes import ImageLabels
from vesselseg.prepare.source_images import SourceImage, find_source_image


def labels(image_path: str = "", data: bytes | None = None, size: tuple[int, int] | None = None) -> ImageLabels:
    return ImageLabels((), (), image_path, data, size)


def picture(value: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("L", size, value)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def level(image: SourceImage) -> int:
    return int(np.array(Image.open(io.BytesIO(image.content)).convert("L"))[0, 0])


def codes(image: SourceImage) -> list[str]:
    return [code for code, _ in image.notes]


def test_order_is_image_path_then_stem_then_image_data(tmp_path: Path) -> None:
    json_path = tmp_path / "a" / "x.json"
    json_path.parent.mkdir()
    (tmp_path / "pictures").mkdir()
    picture(10).save(tmp_path / "pictures" / "named.png")
    picture(20).save(json_path.parent / "x.png")
    wanted = labels("../pictures/named.png", encoded(picture(30)))
    image = find_source_image(wanted, json_path)
    assert level(image) == 10
    assert codes(image) == ["other_stem"]
    (tmp_path / "pictures" / "named.png").unlink()
    assert level(find_source_image(wanted, json_path)) == 20
    (json_path.parent / "x.png").unlink()
    image = find_source_image(wanted, json_path)
    assert level(image) == 30
    assert image.origin is None


def test_absolute_windows_path_is_found_by_its_name(tmp_path: Path) -> None:
    picture(10).save(tmp_path / "frame.png")
    assert level(find_source_image(labels("C:/Users/li/frame.png"), tmp_path / "x.json")) == 10


def test_image_path_that_is_the_json_itself_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    picture(20).save(tmp_path / "x.jpg")
    assert find_source_image(labels("x.json"), tmp_path / "x.json").origin == tmp_path / "x.jpg"


def test_archive_may_not_point_outside(tmp_path: Path) -> None:
    picture(10).save(tmp_path / "secret.png")
    (tmp_path / "in").mkdir()
    with pytest.raises(ImageError) as caught:
        find_source_image(labels("../secret.png"), tmp_path / "in" / "x.json", allowed_root=tmp_path / "in")
    assert caught.value.code == "no_image"
    assert level(find_source_image(labels("../secret.png"), tmp_path / "in" / "x.json")) == 10


@pytest.mark.parametrize("name", ["missing.png", "", "a" * 5000, "nul\0.png"])
def test_no_image(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="no image") as caught:
        find_source_image(labels(name), tmp_path / "x.json")
    assert caught.value.code == "no_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_image_is_rejected_or_replaced(tmp_path: Path, kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8))
    whole = encoded(noise, kind)
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="damaged or truncated") as caught:
        find_source_image(labels("x.png"), tmp_path / "x.json")
    assert caught.value.code == "unreadable_image"
    image = find_source_image(labels("x.png", encoded(picture(30))), tmp_path / "x.json")
    assert level(image) == 30
    assert codes(image) == ["image_fallback"]


@pytest.mark.parametrize(("content", "words"), [(b"", "0 bytes"), (b"hello", "not an image")])
def test_files_other_than_images(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=words):
        find_source_image(labels("x.png"), tmp_path / "x.json")


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg")])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_eight_bit_png_and_jpeg_are_copied_byte_for_byte(tmp_path: Path, kind: str, suffix: str, mode: str) -> None:
    content = encoded(picture(90).convert(mode), kind)
    (tmp_path / "x.PNG").write_bytes(content)  # the suffix may be wrong
    image = find_source_image(labels("x.PNG"), tmp_path / "x.json")
    assert (image.content, image.suffix, image.notes) == (content, suffix, ())


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP"])
def test_other_formats_are_converted_to_png_losslessly(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    (tmp_path / "x.bmp").write_bytes(
        encoded(Image.fromarray(values), kind, **({"lossless": True} if kind == "WEBP" else {}))
    )
    image = find_source_image(labels("x.bmp"), tmp_path / "x.json")
    assert image.suffix == ".png"
    assert np.array_equal(np.array(Image.open(io.BytesIO(image.content))), values)


def test_16_bit_images_are_scaled_and_listed(tmp_path: Path) -> None:
    values = np.linspace(100, 4095, 48).reshape(6, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    image = find_source_image(labels("x.png"), tmp_path / "x.json")
    stored = np.array(Image.open(io.BytesIO(image.content)))
    assert stored.dtype == np.uint8
    assert (stored.min(), stored.max()) == (0, 255)
    assert codes(image) == ["sixteen_bit"]
    assert "100 to 4095" in image.notes[0][1]


def turned_jpeg(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.zeros((6, 8), np.uint8)
    values[:, :4] = 255
    path.write_bytes(encoded(Image.fromarray(values), "JPEG", exif=exif, quality=95))


@pytest.mark.parametrize(("size", "stored"), [((6, 8), (6, 8)), (None, (6, 8)), ((8, 6), (8, 6))])
def test_exif_orientation_is_applied_unless_the_labels_fit_without(
    tmp_path: Path, size: tuple[int, int] | None, stored: tuple[int, int]
) -> None:
    turned_jpeg(tmp_path / "x.jpg")
    image = find_source_image(labels("x.jpg", size=size), tmp_path / "x.json")
    reopened = Image.open(io.BytesIO(image.content))
    assert reopened.size == image.size == stored
    assert reopened.getexif().get(0x0112, 1) == 1
    assert codes(image) == ["turned"]


def test_first_of_several_frames(tmp_path: Path) -> None:
    picture(10).save(tmp_path / "x.tif", save_all=True, append_images=[picture(20)])
    image = find_source_image(labels("x.tif"), tmp_path / "x.json")
    assert level(image) == 10
    assert codes(image) == ["several_frames"]


def test_image_data_alone(tmp_path: Path) -> None:
    content = base64.b64decode(base64.b64encode(encoded(picture(30), "JPEG")))
    image = find_source_image(labels("gone.jpg", content), tmp_path / "x.json")
    assert (image.suffix, image.content) == (".jpg", content)
