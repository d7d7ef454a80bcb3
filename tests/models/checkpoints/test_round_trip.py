from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.checkpoints.families import write_internlm2_base
from tests.models.test_reference import TINY_TRUNK
from tests.tiny import SAM2, shaken_model
from vesselseg.errors import WeightsError
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.shards import stream_folder
from vesselseg.models.checkpoints.write_published import write_published_folder
from vesselseg.models.lora import merge_lora


def through(folder: Path, out: Path, **options: Any) -> None:
    """Read a folder, write it again."""
    base = read_base_folder(folder)
    arguments = {"sam2": {"trunk": TINY_TRUNK}, "trainable": {"llm": "frozen"}, "dtype": "bfloat16"}
    model = build_model(str(folder), **{**arguments, **options.pop("build", {})})
    out.mkdir()
    write_published_folder(model, base.tokenizer, out, dtype=torch.bfloat16, extra={}, kept=base.fields, **options)


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name, value in before.items() if name not in after or not torch.equal(after[name], value)]


def bf16(folder: Path) -> dict[str, Tensor]:
    return {name: tensor.bfloat16() for name, tensor in stream_folder(folder)}


@pytest.mark.shared
@pytest.mark.parametrize("family", ["qwen2", "internlm2"])
def test_a_published_folder_comes_back_bit_for_bit(family: str, shared: Path, tmp_path: Path) -> None:
    source = shared / "reference" / f"tiny_sa2va_{family}"
    folder = Path(shutil.copytree(source, tmp_path / "in", ignore=shutil.ignore_patterns("*.npz")))
    content = json.loads((folder / "config.json").read_text())
    content |= {"a_field_of_theirs": {"deep": [1, 2]}, "use_backbone_lora": 0}
    (folder / "config.json").write_text(json.dumps(content))
    before = bf16(folder)
    through(folder, tmp_path / "out")
    after = dict(stream_folder(tmp_path / "out"))
    assert len(before) > 50 and differing(before, after) == []
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    # A folder without SAM2 gains one, drawn at random: every model of this package holds a mask decoder.
    added = after.keys() - before.keys()
    assert all(name.startswith("grounding_encoder.") for name in added)
    assert bool(added) == (family == "internlm2")
    check_config(content, json.loads((tmp_path / "out" / "config.json").read_text()))


def check_config(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Everything that was there is there, but for whose code reads the folder."""
    for name in before.keys() - {"architectures", "auto_map"}:
        if name in ("llm_config", "vision_config"):
            assert {key: after[name].get(key) for key in before[name]} == before[name]
        else:
            assert after[name] == before[name], name
    assert "auto_map" not in after  # the code that it names is not in this folder


def test_fused_internlm2_and_norms_come_back_from_a_base(tmp_path: Path) -> None:
    state = write_internlm2_base(tmp_path / "base")
    through(tmp_path / "base", tmp_path / "out", build={"sam2": SAM2})
    after, before = dict(stream_folder(tmp_path / "out")), {name: value.bfloat16() for name, value in state.items()}
    tables = {"language_model.model.tok_embeddings.weight", "language_model.output.weight"}
    assert set(differing(before, after)) == tables
    for name in tables:
        rows = len(before[name])
        assert torch.equal(after[name][:rows], before[name]) and len(after[name]) == rows + 5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["template"] == "internlm2_chat" and config["llm_config"]["architectures"] == ["InternLM2ForCausalLM"]
    assert config["llm_config"]["rope_scaling"] == {"type": "dynamic", "factor": 2.0}


def test_shards_hold_what_one_file_holds_and_stay_below_the_limit(tiny_base: Path, tmp_path: Path) -> None:
    model = shaken_model(tiny_base)
    merge_lora(model)
    tokenizer, limit = read_base_folder(tiny_base).tokenizer, 1_000_000
    for name, options in {"one": {}, "many": {"shard_bytes": limit}}.items():
        (tmp_path / name).mkdir()
        write_published_folder(model, tokenizer, tmp_path / name, dtype=torch.float32, extra={}, **options)
    one, many = dict(stream_folder(tmp_path / "one")), dict(stream_folder(tmp_path / "many"))
    assert one.keys() == many.keys() and differing(one, many) == []
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 5 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= limit
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())


def test_a_trained_sam2_in_the_folder_is_not_replaced_by_the_configs_file(tiny_base: Path, tmp_path: Path) -> None:
    model = shaken_model(tiny_base)
    merge_lora(model)
    tokenizer = read_base_folder(tiny_base).tokenizer
    (tmp_path / "out").mkdir()
    write_published_folder(model, tokenizer, tmp_path / "out", dtype=torch.float32, extra={})
    # What the leaf of the base says of SAM2 stays in the config when the base becomes an exported folder.
    sam2 = {"variant": "large", "checkpoint": str(tmp_path / "sam2_hiera_large.pt"), "image_size": 64}
    again = build_model(str(tmp_path / "out"), sam2=sam2)
    expected = model.grounding.sam2.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.grounding.sam2.state_dict().items())
    assert again.grounding.image_size == 64 and again.randomly_initialised == ()
    assert again.config.grounding_config == {**model.config.grounding_config, "image_size": 64}


REFUSED = {
    "another family": ({"llm_config": {"model_type": "qwen3"}}, "its language model is 'qwen3'; supported are qwen2"),
    "another pixel shuffle": ({"ps_version": "v1"}, "ps_version = 'v1'; expected"),
    "another layer": ({"select_layer": -4}, "select_layer = -4; expected"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_this_package_would_compute_otherwise_is_refused(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    changes, reason = REFUSED[kind]
    content = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=reason):
        read_base_folder(folder)


def test_wrong_shapes_in_a_published_folder_name_the_file(tmp_path: Path) -> None:
    state = write_internlm2_base(tmp_path / "base")
    name = "language_model.model.layers.0.attention.wqkv.weight"
    save_file({**state, name: state[name][:100].contiguous()}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"layers\.0\.self_attn\.k_proj\.weight is \(100, 64\), expected \(32, 64\)"
    ) as raised:
        build_model(str(tmp_path / "base"), sam2=SAM2)
    assert str(tmp_path / "base") in str(raised.value)
