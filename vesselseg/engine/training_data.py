"""The training split as a data set, in the views and tokens that the model reads."""

from __future__ import annotations

from pathlib import Path

from vesselseg.data.augment import Augment
from vesselseg.data.vessel_dataset import VesselDataset
from vesselseg.inference.processor import processor_for
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.registry import DATASETS

DATASETS.register_module(module=VesselDataset)


def training_dataset(
    data_root: str | Path,
    model_base: str | Path,
    sam_image_size: int,
    split: str = "train",
    max_length: int = 2048,
    max_tiles: int | None = None,
    augment: Augment | None = None,
    vary_questions: bool = True,
    seed: int = 0,
    limit: int | None = None,
    variants: int | None = None,
) -> VesselDataset:
    """The data set of one split.

    model_base: folder whose tokenizer and tile size are used. sam_image_size: side of SAM2's view in pixels.
    max_length: tokens of one conversation, more is an error. max_tiles: InternVL tiles per image without the thumbnail,
    None for the model's own limit. augment: ranges of `Augment`, None for none. limit: only the first so many images.
    variants: views per image, repeated over the epochs; None: every epoch draws another.
    Raises ManifestError and WeightsError.
    """
    folder = read_base_folder(model_base)
    folder.config.grounding_config = {**folder.config.grounding_config, "image_size": sam_image_size}
    processor = processor_for(folder.config, folder.tokenizer, max_length=max_length, max_tiles=max_tiles)
    return VesselDataset(
        data_root,
        split,
        views=processor.views,
        tokens=processor.tokens,
        tokens_per_tile=processor.tokens_per_tile,
        augment=augment,
        vary_questions=vary_questions,
        seed=seed,
        limit=limit,
        variants=variants,
    )
