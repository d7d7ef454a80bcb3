"""The same without vesselseg: python examples/image_to_picture_hf.py FOLDER IMAGE PICTURE

FOLDER is an exported folder, whose own code runs. It needs torch, transformers 4.57, sam2, safetensors and pillow.
IMAGE is an image that Pillow opens; transparency is ignored.
"""

import sys

import numpy as np
from PIL import Image, ImageOps
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
image = ImageOps.exif_transpose(Image.open(sys.argv[2]))  # upright
if image.mode.startswith(("I", "F")):  # more than 8 bits, which Pillow would clip at 255
    values = np.array(image, np.float64)
    image = Image.fromarray(np.round((values - values.min()) * (255 / max(np.ptp(values), 1e-9))).astype(np.uint8))
pixels = np.array(image.convert("RGB"))
result = model.predict_forward(Image.fromarray(pixels), "Please segment blood vessel in this image.", tokenizer)
pixels[result["prediction_masks"][0][0], 0] = 255  # prediction_probs has the probabilities
Image.fromarray(pixels).save(sys.argv[3])
