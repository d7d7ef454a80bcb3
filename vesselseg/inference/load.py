"""A path -> Predictor: an exported folder or a training checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vesselseg.errors import UserError, WeightsError
from vesselseg.inference.predictor import Predictor
from vesselseg.inference.processor import processor_for
from vesselseg.inference.prompted_folder import is_prompted_folder, load_prompted
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.hub import hub_name
from vesselseg.models.checkpoints.training_file import base_of, build_from_training_file

FROZEN = {
    "llm": "frozen",
    "new_tokens": False,
    "projector": False,
    "seg_projector": False,
    "mask_decoder": False,
}


def load_predictor(
    path: str | Path,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    base: str | None = None,
    quantise: str | None = None,
) -> Predictor:
    """The predictor of an exported or published Sa2VA folder, local or on the hub, or of a checkpoint `.pth`.

    device: `auto` uses the GPU if one exists, `split` spreads the language model over all visible GPUs. dtype: None
    means bf16 on a GPU that supports it, else float32. base: the current path of a checkpoint's base folder, if it has
    moved. quantise: None, `nf4` or `int8`: the language model's blocks in 4 or 8 bits. Raises WeightsError, UserError.
    """
    path, devices = Path(path), choose_devices(device)
    main_device = devices[0]
    dtype = dtype or default_dtype(main_device)
    if is_prompted_folder(path):
        return load_prompted(path, main_device, dtype)
    options: dict[str, Any] = {"device": main_device, "dtype": dtype, "quantise": quantise, "layer_devices": devices}
    if (path.is_dir() and (path / "config.json").exists()) or hub_name(path):
        model = build_model(str(path), trainable=FROZEN, **options)
        tokenizer = read_base_folder(path).tokenizer
    elif path.suffix == ".pth":
        model, content = build_from_training_file(path, base=base, **options)
        tokenizer = read_base_folder(base_of(content, path, base)).tokenizer
    else:
        raise WeightsError(_no_model(path))
    model.eval().requires_grad_(False)
    config = model.config
    return Sa2VAPredictor(model, processor_for(config, tokenizer), config.threshold, config.mask_temperature)


def _no_model(path: Path) -> str:
    verb = "is" if path.exists() else "does not exist, so it is"
    return (
        f"{path} {verb} neither an exported model folder (with config.json) nor a checkpoint (.pth); "
        "name one of these, e.g. work_dirs/RUN/best.pth, or a model on the hub, e.g. ByteDance/Sa2VA-InternVL3-8B"
    )


def choose_devices(device: str) -> tuple[torch.device, ...]:
    """`split` -> all visible GPUs; any other name -> the device of `choose_device`."""
    if device != "split":
        return (choose_device(device),)
    if not torch.cuda.is_available():
        raise UserError("--device split spreads a model over GPUs, and this machine has none; use auto or cpu")
    return tuple(torch.device("cuda", number) for number in range(torch.cuda.device_count()))


def choose_device(device: str) -> torch.device:
    """`auto` -> cuda if available, else cpu; any other name -> that device. Raises UserError if it is unavailable."""
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the device {device!r} cannot be used ({reason}); use auto, cpu, cuda:0 or split"
            ) from None
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU that supports it, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
