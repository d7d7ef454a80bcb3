"""A weights folder brings no code and causes none to be fetched, whatever its files say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.no_network import no_network
from tests.tiny import LORA, SAM2, model_arguments, shaken_model
from vesselseg.errors import UserError, WeightsError
from vesselseg.inference.load import load_predictor
from vesselseg.inference.prompted_folder import load_prompted
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.folder_schema import Grounding
from vesselseg.models.checkpoints.inspection import inspect
from vesselseg.models.checkpoints.resolved_names import DROPPED, RESOLVED, check_config_file
from vesselseg.models.checkpoints.training_file import base_of, build_from_training_file, read_training_file
from vesselseg.models.checkpoints.write_published import write_published_folder
from vesselseg.models.prompted_config import MODEL_TYPE
from vesselseg.models.sam2_grounding import TRUNKS

KERNEL = "someone/kernel"


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An offline setting would make a library say no before it tries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with no_network():
        yield


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_an_attempt_is_noticed() -> None:
    import socket

    with pytest.raises(AssertionError, match="getaddrinfo"), no_network(), pytest.raises(OSError):
        socket.create_connection(("huggingface.co", 443))


@pytest.mark.parametrize("name", RESOLVED)
def test_names_that_mean_code_are_refused_wherever_they_stand(name: str, folder: Path) -> None:
    whole = json.loads((folder / "config.json").read_text())
    for part in ((), ("llm_config",), ("vision_config",), ("llm_config", "deeper")):
        content = json.loads(json.dumps(whole))
        place = content
        for step in part:
            place = place.setdefault(step, {})
        place[name] = KERNEL
        (folder / "config.json").write_text(json.dumps(content))
        for way_in in (read_base_folder, inspect, load_predictor, check_config_file):
            with pytest.raises(WeightsError) as caught:
                way_in(folder)
            assert f"{'.'.join((*part, name))} is '{KERNEL}'; supported:" in str(caught.value)


@pytest.mark.parametrize("name", [name for name, texts in RESOLVED.items() if texts])
def test_supported_values_pass(name: str, folder: Path) -> None:
    change(folder / "config.json", lambda content: content["llm_config"].update({name: RESOLVED[name][0]}))
    text = read_base_folder(folder).config.text()
    assert text._attn_implementation == "sdpa"


def test_a_name_that_nobody_knows_yet_never_reaches_transformers(folder: Path, tmp_path: Path) -> None:
    later = {"later_kernel": KERNEL, "later_parts": {"code": KERNEL}, "later_number": 3}
    change(folder / "config.json", lambda content: (content.update(later), content["llm_config"].update(later)))
    base = read_base_folder(folder)
    assert not later.keys() & {*vars(base.config), *vars(base.config.text())}
    model = shaken_model(folder)
    (tmp_path / "out").mkdir()
    write_published_folder(model, None, tmp_path / "out", dtype=torch.float32, extra={}, kept=base.fields)
    written = (tmp_path / "out" / "config.json").read_text()
    assert KERNEL not in written and "later_number" in written


def test_a_distilled_folder_is_checked_too(tmp_path: Path) -> None:
    content = {
        "model_type": MODEL_TYPE,
        "phrases": ["vessel"],
        "grounding_config": SAM2,
        "_attn_implementation": KERNEL,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    for way_in in (load_predictor, lambda path: load_prompted(path, "cpu", torch.float32)):
        with pytest.raises(WeightsError, match="_attn_implementation is 'someone/kernel'"):
            way_in(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention": KERNEL}, "model.sa2va.attention is 'someone/kernel'"),
        ({"attn_implementation": KERNEL}, "attn_implementation is 'someone/kernel'"),
        ({"lora": {**LORA, "target_modules": KERNEL}}, "lora.target_modules"),
        ({"sam2": {**SAM2, "hub": KERNEL}}, "sam2.hub"),
        ({"base": 3}, "base is 3"),
        ({"lora": {**LORA, "r": 10**9}}, "lora.r is 1000000000"),
    ],
)
def test_settings_in_a_checkpoint_are_checked(changes: dict, reason: str, tiny_base: Path, tmp_path: Path) -> None:
    content = {"state_dict": {}, "model_config": {**model_arguments(tiny_base), **changes}, "threshold": 0.5}
    torch.save(content, tmp_path / "best.pth")
    for way_in in (read_training_file, build_from_training_file, load_predictor, inspect):
        with pytest.raises(UserError, match=reason):
            way_in(tmp_path / "best.pth")


def test_a_hub_name_in_a_checkpoint_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only from the cache, where it is because a user named it once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    settings = model_arguments(Path("someone/model"))
    torch.save({"state_dict": {}, "model_config": settings, "threshold": 0.5}, tmp_path / "best.pth")
    for way_in in (build_from_training_file, load_predictor):
        with pytest.raises(
            WeightsError, match=r"Nothing is downloaded because a file says so; .* hf download someone/model"
        ):
            way_in(tmp_path / "best.pth")
    content = read_training_file(tmp_path / "best.pth")
    assert base_of(content, tmp_path, "other/model") == "other/model"


def test_flash_attention_that_is_not_installed_is_no_reason_to_fetch_it(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda: True)
    with pytest.raises(UserError, match="needs a GPU and the package flash-attn"):
        build_model(str(tiny_base), sam2=SAM2, attention="flash_attention_2")


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "AutoModel"},
        {"tokenizer_class": ["Qwen2Tokenizer"]},
        {"tokenizer_file": "/etc/passwd"},
        {"init_inputs": ["/etc/passwd"]},
        {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]},
        {"from_slow": "yes"},
    ],
)
def test_a_tokenizer_names_no_class_and_no_file(changes: dict, folder: Path) -> None:
    change(folder / "tokenizer_config.json", lambda content: content.update(changes))
    with pytest.raises(WeightsError, match=f"tokenizer_config.json: {next(iter(changes))} is "):
        read_base_folder(folder)


def test_what_is_written_names_no_foreign_code(folder: Path, tmp_path: Path) -> None:
    names = dict.fromkeys(DROPPED, KERNEL)
    auto_map = {
        "auto_map": {"AutoTokenizer": [f"{KERNEL}--code.Tokenizer", None], "AutoConfig": f"{KERNEL}--code.Config"}
    }
    for file, part in (("tokenizer_config.json", None), ("config.json", "llm_config"), ("config.json", None)):
        change(folder / file, lambda content, part=part: (content[part] if part else content).update(names | auto_map))
    base, out = read_base_folder(folder), tmp_path / "out"
    out.mkdir()
    model = shaken_model(folder)
    write_published_folder(model, base.tokenizer, out, dtype=torch.float32, extra={}, kept=base.fields)
    for file in ("config.json", "tokenizer_config.json"):
        assert KERNEL not in (out / file).read_text(), file
    again = AutoTokenizer.from_pretrained(out)  # as README says
    assert again("vessel")["input_ids"] == base.tokenizer("vessel")["input_ids"]


def test_a_folder_without_a_tokenizer_class_is_read_by_its_language_model(folder: Path, tiny_base: Path) -> None:
    change(folder / "tokenizer_config.json", lambda content: content.pop("tokenizer_class"))
    assert type(read_base_folder(folder).tokenizer) is type(read_base_folder(tiny_base).tokenizer)


def test_the_schema_knows_the_variants_of_sam2() -> None:
    assert [Grounding(variant=name).variant for name in TRUNKS] == list(TRUNKS)
