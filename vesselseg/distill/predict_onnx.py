"""An image -> a mask with numpy, pillow and onnxruntime: python predict_onnx.py model_int8.onnx IMAGE MASK.png"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def enlarge(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Linear interpolation along an axis with aligned cell centres: torch's bilinear mode, align_corners=False."""
    position = np.clip((np.arange(size) + 0.5) * values.shape[axis] / size - 0.5, 0, values.shape[axis] - 1)
    low = position.astype(int)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    weight = (position - low).reshape([-1 if number == axis else 1 for number in range(values.ndim)])
    return values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight


def predict(session: onnxruntime.InferenceSession, image: Image.Image) -> dict[str, np.ndarray]:
    """Phrase -> probabilities (height, width) of an 8-bit image."""
    metadata = session.get_modelmeta().custom_metadata_map
    side, temperature = int(metadata["side"]), float(metadata["temperature"])
    square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    pixels = (np.asarray(square, np.float32) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    # (phrases, h, w)
    logits = session.run(None, {"squares": pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
    between = int(metadata["mask_square"])
    for height, width in ((between, between), (image.height, image.width)):
        logits = enlarge(enlarge(logits, height, 1), width, 2)
    return dict(zip(json.loads(metadata["phrases"]), 1 / (1 + np.exp(-logits / temperature))))


def main() -> None:
    """Write the mask of the first phrase; the image is turned upright by its EXIF orientation."""
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    model, source, target = sys.argv[1:]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    image = Image.open(source)
    if image.mode.startswith(("I", "F")):  # Pillow would clip such values at 255
        raise SystemExit(f"{source}: more than 8 bits per pixel; scale it to 8 bits first")
    probabilities = next(iter(predict(session, ImageOps.exif_transpose(image)).values()))
    threshold = float(session.get_modelmeta().custom_metadata_map["threshold"])
    Image.fromarray(((probabilities > threshold) * 255).astype(np.uint8)).save(target)


if __name__ == "__main__":
    main()
