"""Conversions whose base is not the tiny InternVL folder: Sa2VA's own, and InternLM2 with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.checkpoints.families import write_internlm2_base
from tests.models.checkpoints.test_internlm2_tokenizer import ADDED, write_folder
from tests.models.test_reference import TINY_TRUNK
from tests.tiny import LORA, SAM2, model_arguments, picture, save_checkpoint, shaken_model
from vesselseg.export.convert import convert
from vesselseg.inference.load import load_predictor


def converted(base: Path, folder: Path, **changes: Any) -> tuple[Path, Path]:
    """(checkpoint, exported folder) of a model whose every trainable weight has moved."""
    checkpoint = save_checkpoint(shaken_model(base, **changes), folder / "x.pth", model_arguments(base, **changes))
    picture(1).save(folder / "1.png")
    check = convert(checkpoint, folder / "out", [folder / "1.png"], dtype=torch.float32)
    assert check.probability < 1e-4
    return checkpoint, folder / "out"


def same_answers(checkpoint: Path, out: Path) -> None:
    image = picture(7, 200, 90)
    before, after = (
        load_predictor(path, device="cpu").predict([image], [["blood vessel"]])[0].probabilities
        for path in (checkpoint, out)
    )
    assert before.std() > 1e-4
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_internlm2_and_its_tokenizer(tmp_path: Path) -> None:
    base = tmp_path / "base"
    size = int(write_folder(base).get_piece_size())
    write_internlm2_base(base, vocabulary=size + len(ADDED))
    checkpoint, out = converted(base, tmp_path)
    same_answers(checkpoint, out)
    config = json.loads((out / "config.json").read_text())
    assert config["template"] == "internlm2_chat" and config["llm_config"]["vocab_size"] == size + len(ADDED) + 5
    assert not (out / "tokenization_internlm2.py").exists()


@pytest.mark.shared
@pytest.mark.slow
def test_a_published_sa2va_folder_as_base(shared: Path, tmp_path: Path) -> None:
    base = shared / "reference" / "tiny_sa2va_qwen2"
    sam2 = {**SAM2, "variant": "large", "image_size": 128, "trunk": TINY_TRUNK}
    checkpoint, out = converted(base, tmp_path, sam2=sam2, lora=LORA, max_tiles=1)
    same_answers(checkpoint, out)
    config = json.loads((out / "config.json").read_text())
    published = json.loads((base / "config.json").read_text())
    assert config["llm_config"]["vocab_size"] == published["llm_config"]["vocab_size"]
    assert config["auto_map"]["AutoModel"].startswith("hf_model.")
