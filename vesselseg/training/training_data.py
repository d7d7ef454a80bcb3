"""The training split as a dataset, in the views and tokens that the model reads."""

from __future__ import annotations

from pathlib import Path

from vesselseg.dataset.augment import Augment
from vesselseg.dataset.vessel_dataset import VesselDataset
from vesselseg.errors import UserError
from vesselseg.inference.processor import processor_for, views_for
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.sa2va_config import Sa2VAConfig
from vesselseg.registry import DATASETS, registered_names
from vesselseg.suggest import did_you_mean

DATASETS.register_module(module=VesselDataset)


def training_dataset(
    data_root: str | Path,
    model_base: str | Path | None,
    sam_image_size: int,
    split: str = "train",  # of the dataset folder
    max_length: int = 2048,
    max_tiles: int | None = None,
    augment: Augment | None = None,
    vary_questions: bool = True,  # draw order and wording of the questions
    seed: int = 0,
    limit: int | None = None,
    variants: int | None = None,
    dataset_class: str | None = None,
) -> VesselDataset:
    """The dataset of one split.

    model_base: folder whose tokenizer and tile size are used; None for the published tile size and no tokenizer,
    enough to look at views and questions. sam_image_size: side of SAM2's view in pixels.
    max_length: most tokens of one conversation; a longer one is an error. max_tiles: InternVL tiles per image without
    the thumbnail, None for the model's own limit. augment: ranges of `Augment`, None for no augmentation.
    limit: only the first N images. variants: views per image, repeated over the epochs; None: a new one in every epoch.
    dataset_class: registered name of a subclass of VesselDataset, which is used instead.
    Raises ManifestError and WeightsError, UserError for a name that is not registered.
    """
    folder = None if model_base is None else read_base_folder(model_base)
    config = Sa2VAConfig() if folder is None else folder.config
    config.grounding_config = {**config.grounding_config, "image_size": sam_image_size}
    tokens = None
    if folder is not None:
        tokens = processor_for(config, folder.tokenizer, max_length=max_length).tokens
    return _dataset_class(dataset_class)(
        data_root,
        split,
        views=views_for(config, max_tiles),
        tokens=tokens,
        tokens_per_tile=config.tokens_per_tile,
        augment=augment,
        vary_questions=vary_questions,
        seed=seed,
        limit=limit,
        variants=variants,
    )


def _dataset_class(name: str | None) -> type[VesselDataset]:
    found = VesselDataset if name is None else DATASETS.get(name)
    if not (isinstance(found, type) and issubclass(found, VesselDataset)):
        raise UserError(
            f"train_dataset.dataset_class: no subclass of VesselDataset is registered as {name!r}"
            f"{did_you_mean(str(name), registered_names(DATASETS))}; custom_imports must name the module that does it"
        )
    return found
