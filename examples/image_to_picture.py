"""An image in, the same image with its vessels in red out: python examples/image_to_picture.py MODEL IMAGE PICTURE

MODEL is an exported folder, a checkpoint (best.pth) or a model of the hub; IMAGE is any picture, or DICOM file or
video, of which the first frame is taken, turned upright and in 8 bits as the tools read it.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vesselseg.imaging.frames import open_frames
from vesselseg.inference.load import load_predictor

predictor = load_predictor(sys.argv[1])  # on the GPU if there is one
image = open_frames(sys.argv[2], Path(sys.argv[2])).frame(0)
prediction = predictor.predict([image], [["blood vessel"]])[0]
pixels = np.array(image)
pixels[prediction.masks[0], 0] = 255  # prediction.probabilities holds what the threshold was applied to
Image.fromarray(pixels).save(sys.argv[3])
