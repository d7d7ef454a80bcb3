"""config.json and index files of any shape: one message, no traceback, no memory."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate import init_empty_weights

from tests.tiny import SAM2
from vesselseg.errors import WeightsError
from vesselseg.models.checkpoints import base_folder
from vesselseg.models.checkpoints.base_folder import BaseFolder, read_base_folder
from vesselseg.models.checkpoints.shards import folder_names, stream_folder, weight_files
from vesselseg.models.internvl import build_language_model, build_vision_tower
from vesselseg.models.sam2_grounding import build_sam2

NONSENSE = (None, "", "²", [1, 2], {"a": [[[]]]}, -1, 0, 0.5, 10**30, True)
EXPORTED = {
    "model_type": "sa2va_chat",
    "grounding_config": {**SAM2, "version": "2.0"},
    "threshold": 0.4,
    "mask_temperature": 1.0,
    "default_phrase": "blood vessel",
    "training_loss": {"dice": 0.5},
    "training_images": "2b4eb459161b",
    "new_token_start": 357,
    "tie_word_embeddings": False,
    "architectures": ["VesselSegModel"],
}


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not readable as JSON"),
        ("[1]", "expected an object in braces, found a list"),
        ("null", "found null"),
        ("7", "found a number"),
        ('"config"', "found a text"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"a":' * 100_000, "not readable as JSON"),
        ('{"llm_config": ' + "1" * 10_000 + "}", "not readable as JSON"),
        ('{"a":' * 300 + "1" + "}" * 300, "nested more than 20 levels deep"),
        ('{"threshold": NaN}', "NaN is no number of JSON"),
        ("{}", "model_type None without llm_config and vision_config"),
        ('{"model_type": ["internvl"], "text_config": 1}', "without llm_config and vision_config"),
        ('{"model_type": "internvl", "text_config": 1, "vision_config": []}', "text_config is 1"),
        ('{"llm_config": {}, "vision_config": {}}', "lacks llm_config.model_type"),
    ],
)
def test_a_config_of_any_shape_is_one_message(text: str, reason: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=reason) as caught:
        read_base_folder(folder)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("llm_config", "num_hidden_layers", 10**5),
        ("llm_config", "hidden_size", 10**6),
        ("llm_config", "vocab_size", 10**9),
        ("llm_config", "num_attention_heads", 3),
        ("llm_config", "num_key_value_heads", 3),
        ("llm_config", "rope_theta", "layer_norm"),
        ("llm_config", "rope_scaling", {"type": "someone/kernel"}),
        ("llm_config", "rope_scaling", {"type": "dynamic"}),
        ("llm_config", "layer_types", ["full_attention"] * 9),
        ("vision_config", "num_attention_heads", -10000000.0),
        ("vision_config", "norm_type", 1e-320),
        ("vision_config", "image_size", 10**6),
        ("vision_config", "patch_size", [[[[[1]]]]]),
        ("grounding_config", "image_size", 100),
        ("grounding_config", "version", [[1, 2]]),
        ("grounding_config", "trunk", {"stages": [1, 2, 3, 10**6]}),
        ("grounding_config", "vessel_head", {"channels": [10**9]}),
    ],
)
def test_sizes_of_no_model_are_refused_before_memory_is_taken(part: str, name: str, value: Any, folder: Path) -> None:
    content = {**json.loads((folder / "config.json").read_text()), "model_type": "sa2va_chat"}
    content[part] = {**content.get(part, SAM2), name: value}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=part) as caught:
        read_base_folder(folder)
    assert name.split("_")[-1] in str(caught.value)


@pytest.mark.slow
def test_every_field_with_nonsense_is_refused_or_builds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal names the field; what is let through makes a model (on no memory), so that no error comes later."""
    tokenizer = read_base_folder(folder).tokenizer
    monkeypatch.setattr(base_folder, "_read_tokenizer", lambda *_: copy.deepcopy(tokenizer))
    whole, path = {**json.loads((folder / "config.json").read_text()), **EXPORTED}, folder / "config.json"
    whole["llm_config"]["vocab_size"] = len(tokenizer)
    path.write_text(json.dumps(whole))
    build_empty(read_base_folder(folder))
    names = [(name,) for name in whole]
    parts = ("llm_config", "vision_config", "grounding_config")
    names += [(part, name) for part in parts for name in {**whole[part], "a b": 1, "self": 2}]
    refused = let_through = 0
    for place in names:
        for value in NONSENSE:
            content = copy.deepcopy(whole)
            (content[place[0]] if len(place) == 2 else content)[place[-1]] = value
            path.write_text(json.dumps(content))
            try:
                base = read_base_folder(folder)
            except WeightsError as error:
                refused += 1
                assert str(path) in str(error) or str(folder) in str(error)
            else:
                let_through += 1
                build_empty(base)
    assert refused > 250 and let_through > 40


def build_empty(base: BaseFolder) -> None:
    with init_empty_weights():
        build_vision_tower(base.config, "sdpa")
        build_language_model(base.config, "sdpa")
    assert base.config.tokens_per_tile > 0


@pytest.mark.shared
def test_the_damaged_files_that_were_found(shared: Path, folder: Path) -> None:
    files = sorted((shared / "cases" / "fuzz").glob("weights_*_config.json"))
    assert files
    for file in files:
        shutil.copyfile(file, folder / "config.json")
        try:
            base = read_base_folder(folder)
        except WeightsError as error:
            assert str(folder) in str(error), file.name
        else:
            build_empty(base)
            build_sam2(base.config.grounding_config)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("[]", "expected an object in braces, found a list"),
        ("{}", "weight_map must name a file for each tensor"),
        ('{"weight_map": [["a", "b"]]}', "weight_map must name a file for each tensor"),
        ('{"weight_map": {"a": 3}}', "weight_map must name a file for each tensor"),
        ('{"weight_map": {"a": "../../other/model.safetensors"}}', "is no .safetensors file of the folder"),
        ('{"weight_map": {"a": "/etc/model.safetensors"}}', "is no .safetensors file of the folder"),
        ('{"weight_map": {"a": "best.pth"}}', "is no .safetensors file of the folder"),
        ('{"weight_map": {"a": "x.safetensors"}}', "1 of 1 shards are missing"),
        ("[" * 100_000, "not readable as JSON"),
    ],
)
def test_an_index_of_any_shape_is_one_message(index: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    for way_in in (weight_files, lambda folder: list(stream_folder(folder))):
        with pytest.raises(WeightsError, match=reason):
            way_in(tmp_path)
    if "missing" not in reason:
        with pytest.raises(WeightsError, match=reason):
            folder_names(tmp_path)
