"""A picture -> a mask with numpy, pillow and onnxruntime: python predict_onnx.py model_int8.onnx PICTURE MASK.png"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def enlarge(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Linear interpolation along an axis, cells' middles kept in place: torch's bilinear, one direction."""
    place = np.clip((np.arange(size) + 0.5) * values.shape[axis] / size - 0.5, 0, values.shape[axis] - 1)
    low = place.astype(int)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    part = (place - low).reshape([-1 if number == axis else 1 for number in range(values.ndim)])
    return values.take(low, axis) * (1 - part) + values.take(high, axis) * part


def predict(session: onnxruntime.InferenceSession, picture: Image.Image) -> dict[str, np.ndarray]:
    """Phrase -> probabilities (height, width) of an 8-bit picture."""
    about = session.get_modelmeta().custom_metadata_map
    side, temperature = int(about["side"]), float(about["temperature"])
    square = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    pixels = (np.asarray(square, np.float32) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    logits = session.run(None, {"squares": pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
    for height, width in ((side, side), (picture.height, picture.width)):
        logits = enlarge(enlarge(logits, height, 1), width, 2)
    return dict(zip(json.loads(about["phrases"]), 1 / (1 + np.exp(-logits / temperature))))


def main() -> None:
    """The first phrase's mask of a picture, turned upright as its EXIF orientation asks for it."""
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    model, source, target = sys.argv[1:]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    picture = Image.open(source)
    if picture.mode.startswith(("I", "F")):  # Pillow would cut such values off at 255
        raise SystemExit(f"{source}: more than 8 bits a pixel; scale it to 8 bits first")
    probabilities = next(iter(predict(session, ImageOps.exif_transpose(picture)).values()))
    threshold = float(session.get_modelmeta().custom_metadata_map["threshold"])
    Image.fromarray(((probabilities > threshold) * 255).astype(np.uint8)).save(target)


if __name__ == "__main__":
    main()
