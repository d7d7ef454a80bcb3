"""As vessel.py, for training from scratch on images whose orientation carries information, such as angiograms.

Which vessels of an angiogram are labelled depends on the view, so there are no mirror images and only small rotations;
everything else changes more than a pretrained model needs.
"""

from mmengine.config import read_base

with read_base():
    from .vessel import *

train_dataset.augment = dict(
    horizontal_flip=0.0,
    rotation=25.0,
    scale=(0.7, 1.4),
    translation=0.08,
    aspect=0.1,
    elastic=0.025,
    contrast=0.3,
    gamma=0.5,
    inverted_gamma=0.5,
    noise=0.05,
    bias_field=0.5,
    blur=1.0,
    low_resolution=0.5,
    chances=dict(
        rotation=0.9,
        scale=0.9,
        elastic=0.3,
        bias_field=0.3,
        noise=0.15,
        blur=0.3,
        brightness=0.4,
        contrast=0.4,
        low_resolution=0.35,
        inverted_gamma=0.15,
        gamma=0.45,
    ),
)
