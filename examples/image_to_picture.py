"""An image in, the same image with its vessels in red out: python examples/image_to_picture.py MODEL IMAGE PICTURE

MODEL is an exported folder, a checkpoint (best.pth) or a model of the hub; IMAGE is any picture that Pillow opens.
"""

import sys

import numpy as np
from PIL import Image

from vesselseg.data.rgb import as_rgb
from vesselseg.inference.load import load_predictor

predictor = load_predictor(sys.argv[1])  # on the GPU if there is one
image = as_rgb(Image.open(sys.argv[2]))
prediction = predictor.predict([image], [["blood vessel"]])[0]
pixels = np.array(image)
pixels[prediction.masks[0], 0] = 255  # prediction.probabilities holds what the threshold was applied to
Image.fromarray(pixels).save(sys.argv[3])
