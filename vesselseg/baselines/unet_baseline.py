"""The U-Net baseline on a dataset folder: trained on the training split, written as a folder of predictions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from vesselseg.baselines.folder import LabelledImages, check_splits, write_predictions, write_settings
from vesselseg.baselines.options import UNetOptions
from vesselseg.baselines.unet import TrainedUNet, train_unet
from vesselseg.dataset.augment import PRESETS
from vesselseg.dataset.manifest import read_split
from vesselseg.evaluation.prediction_folder import SETTINGS_FILE
from vesselseg.output_folder import whole_folder

_log = logging.getLogger(__name__)

TRAINING_SPLIT, VALIDATION_SPLIT = "train", "val"


def write_unet_baseline(
    data: Path, splits: Sequence[str], out: Path, options: UNetOptions, device: torch.device, force: bool = False
) -> TrainedUNet:
    """Train on the training split, choose epoch and threshold on the validation split, predict the splits into out.

    out is written completely or not at all: 16-bit PNG probabilities named like the images, and predictions.json with
    threshold, options and training history. Raises EvaluationError for empty splits, for predictions of the training
    split, and where out exists.
    """
    check_splits(data, (TRAINING_SPLIT, VALIDATION_SPLIT), splits)
    with whole_folder(out, force, SETTINGS_FILE) as folder:
        train, validation = (
            LabelledImages(data, read_split(data, name)) for name in (TRAINING_SPLIT, VALIDATION_SPLIT)
        )
        _log.info("training a U-Net on %d images of %s, %s", len(train), TRAINING_SPLIT, device)
        trained = train_unet(train, validation, options, device)
        write_predictions(data, splits, trained.predict, folder)
        settings = {
            "method": "U-Net, nnU-Net's recipe",
            "threshold": trained.threshold,
            "params": asdict(options),
            "augment": asdict(PRESETS[options.augment]),
            "chosen_on": {"split": VALIDATION_SPLIT, "images": len(validation)},
            "training": trained.to_dict(),
        }
        write_settings(data, splits, settings, folder)
    return trained
