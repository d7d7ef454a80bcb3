"""The same without vesselseg, as anyone gets it: python examples/image_to_picture_hf.py FOLDER IMAGE PICTURE

FOLDER is an exported folder; its own code runs. It takes torch, transformers 4.57, sam2, safetensors and pillow.
"""

import sys

import numpy as np
from PIL import Image
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
image = Image.open(sys.argv[2]).convert("RGB")
text = "<image>\nPlease segment the blood vessel."
found = model.predict_forward(image=image, text=text, tokenizer=tokenizer)
pixels = np.array(image)
pixels[found["prediction_masks"][0][0], 0] = 255  # prediction_probs holds what the threshold was applied to
Image.fromarray(pixels).save(sys.argv[3])
