from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.command_line import call_command, completed_command
from tests.models.checkpoints.families import write_internlm2_base
from tests.models.checkpoints.published_files import qwen2_state, save
from tests.tiny import SAM2, model_arguments, save_checkpoint, shaken_model
from vesselseg.errors import WeightsError
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.inspection import inspect
from vesselseg.models.checkpoints.write_published import write_published_folder
from vesselseg.models.lora import merge_lora
from vesselseg.models.sam2_grounding import build_sam2


def test_an_internvl_folder(tiny_base: Path) -> None:
    found = inspect(tiny_base)
    state = load_file(tiny_base / "model.safetensors")
    assert found.kind == "InternVL folder, published layout" and found.problem == ""
    assert found.family == "qwen2, 2 layers of 64; InternViT, 2 layers of 64"
    assert found.total == sum(tensor.numel() for tensor in state.values())
    assert found.parameters["projector"] == sum(t.numel() for name, t in state.items() if name.startswith("mlp1."))
    assert found.dtypes == {"float32": found.total} and found.size == (tiny_base / "model.safetensors").stat().st_size
    assert "added when training starts" in found.new_tokens and "a base to train from" in found.use


def test_internlm2_and_shards(tmp_path: Path) -> None:
    state = write_internlm2_base(tmp_path / "base")
    found = inspect(tmp_path / "base")
    assert found.family.startswith("internlm2") and found.problem == ""
    assert found.total == sum(tensor.numel() for tensor in state.values())


def test_an_exported_folder_and_one_that_does_not_fit(tiny_base: Path, tmp_path: Path) -> None:
    model = shaken_model(tiny_base)
    merge_lora(model)
    folder = tmp_path / "out"
    folder.mkdir()
    tokenizer = read_base_folder(tiny_base).tokenizer
    write_published_folder(model, tokenizer, folder, dtype=torch.bfloat16, extra={}, shard_bytes=10_000_000)
    found = inspect(folder)
    assert found.kind == "Sa2VA folder, written by vesselseg" and found.problem == "" and found.files > 1
    assert found.new_tokens == "in vocabulary and tables" and "with the SAM2 in it" in found.use
    positions = model.grounding.sam2.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.numel()
    assert found.dtypes == {"bfloat16": found.total - positions, "float32": positions}
    sam2 = sum(tensor.numel() for tensor in model.grounding.sam2.state_dict().values())
    assert sum(count for part, count in found.parameters.items() if part.startswith("SAM2")) == sam2
    file = next(file for file in folder.glob("*.safetensors") if "text_hidden_fcs.0.weight" in load_file(file))
    state = load_file(file)
    state["text_hidden_fcs.0.weight"] = torch.zeros(3, 3)
    save_file(state, file)
    assert "1 misshapen: seg_projector.linear_1.weight is (3, 3), expected (64, 64)" in inspect(folder).problem


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "version"), [("tiny", "2.0"), ("small", "2.1"), ("large", "2.0")])
def test_files_of_sam2(variant: str, version: str, tmp_path: Path) -> None:
    state = build_sam2({"variant": variant, "version": version, "image_size": 1024}).bfloat16().state_dict()
    torch.save({"model": state}, tmp_path / "some_name.pt")
    found = inspect(tmp_path / "some_name.pt")
    assert found.family == f"SAM {version} {variant}" and found.problem == ""
    assert found.details == {"variant": variant, "version": version}
    del state["no_mem_embed"]
    torch.save({"model": state}, tmp_path / "some_name.pt")
    assert "1 missing: no_mem_embed" in inspect(tmp_path / "some_name.pt").problem


def test_training_checkpoints_of_both_kinds(tiny_base: Path, tmp_path: Path) -> None:
    model = shaken_model(tiny_base)
    own = save_checkpoint(model, tmp_path / "a.pth", model_arguments(tiny_base), meta={"iter": 7, "best_dice": 0.5})
    found = inspect(own)
    assert found.kind == "training checkpoint of vesselseg" and found.details["iteration"] == 7
    assert found.details["lora"] == {"r": 4, "alpha": 8} and found.details["threshold"] == 0.4
    lora = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert found.parameters["LoRA"] == lora
    plain = build_model(str(tiny_base), sam2=SAM2, trainable={"llm": "frozen"})
    published = inspect(save(qwen2_state(plain, 4, ()), tmp_path / "b.pth"))
    assert published.kind == "training checkpoint of the published code"
    assert published.parameters["LoRA"] == lora and published.details["iteration"] == 3672
    assert f"the last 5 of {plain.new_tokens.start + 5} rows" in published.new_tokens
    assert {"projector", "seg projector", "SAM2 mask decoder", "language model"} < published.parameters.keys()


def test_what_is_none_of_these(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="neither a SAM2 file nor a training checkpoint; its first keys are weight"):
        inspect(tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"y\.pt does not exist"):
        inspect(tmp_path / "y.pt")


def test_the_command(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_command("weights", "inspect", tiny_base) == 0
    assert "InternVL folder, published layout" in capsys.readouterr().out
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    state = load_file(folder / "model.safetensors")
    del state["mlp1.1.bias"]
    save_file(state, folder / "model.safetensors")
    refused = completed_command("weights", "inspect", folder, "--json")
    printed = json.loads(refused.stdout)
    assert refused.returncode == 1 and "1 missing: projector.linear_1.bias" in printed["problem"]
    assert printed["total"] == sum(printed["parameters"].values())
    (folder / "model.safetensors").write_bytes(b"cut")
    assert call_command("weights", "inspect", folder) == 2
    complaint = capsys.readouterr().err
    assert "not readable as safetensors" in complaint and "Traceback" not in complaint
