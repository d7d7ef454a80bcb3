"""Paint the vessels of an image red: python examples/image_to_picture.py MODEL IMAGE PICTURE

MODEL is an exported folder, a checkpoint (best.pth) or a model on the hub. IMAGE is an image, or a DICOM file or video,
of which the first frame is used; it is read as by the tools, upright and in 8 bits.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vesselseg.imaging.frames import open_frames
from vesselseg.inference.load import load_predictor

predictor = load_predictor(sys.argv[1])  # on the GPU if available
image = open_frames(sys.argv[2], Path(sys.argv[2])).frame(0)
prediction = predictor.predict([image], [["blood vessel"]])[0]
pixels = np.array(image)
pixels[prediction.masks[0], 0] = 255  # prediction.probabilities has the probabilities
Image.fromarray(pixels).save(sys.argv[3])
