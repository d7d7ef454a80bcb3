from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.checkpoints.families import write_internlm2_base
from tests.models.checkpoints.published_files import LANGUAGE, LINEARS, base_linear, heads_state, qwen2_state, save
from tests.tiny import SAM2, picture, save_checkpoint
from vesselseg.errors import WeightsError
from vesselseg.export.convert import convert
from vesselseg.inference.load import load_predictor
from vesselseg.inference.processor import processor_for
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.training_file import build_from_training_file, read_training_file
from vesselseg.models.checkpoints.write_published import published_state
from vesselseg.models.lora import merge_lora
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sam2_grounding import build_sam2
from vesselseg.models.tiny_base import write_tiny_base
from vesselseg.training.checkpoint import load_trained, trained_state

RANK, ALPHA, CHANGED = 4, 12, (3, 17, 40)
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


@pytest.fixture(scope="module")
def sam2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("sam2") / "sam2_hiera_tiny.pt"
    torch.save({"model": build_sam2(SAM2).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def arguments(tiny_base: Path, sam2_file: Path) -> dict[str, Any]:
    sam2 = {**SAM2, "checkpoint": str(sam2_file)}
    return {"base": str(tiny_base), "sam2": sam2, "lora": {"r": RANK, "alpha": ALPHA, "dropout": 0.0}, "trainable": {}}


@pytest.fixture(scope="module")
def base_model(arguments: dict[str, Any]) -> Sa2VA:
    return build_model(**arguments)


@pytest.fixture(scope="module")
def state(base_model: Sa2VA) -> dict[str, Tensor]:
    return qwen2_state(base_model, RANK, CHANGED)


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(state, tmp_path_factory.mktemp("published") / "iter_3672.pth")


@pytest.fixture(scope="module")
def loaded(file: Path, arguments: dict[str, Any]) -> Sa2VA:
    return build_from_training_file(file, model_config=arguments)[0].eval()


def by_hand(arguments: dict[str, Any], state: dict[str, Tensor]) -> Sa2VA:
    """The model put together tensor by tensor, without the package's reader."""
    model = build_model(**{**arguments, "trainable": {"llm": "frozen"}}).eval()
    start = model.new_tokens.start
    with torch.no_grad():
        for layer in range(len(model.language_model.model.layers)):
            for linear in LINEARS:
                a, b = (state[f"{LANGUAGE}model.layers.{layer}.{linear}.lora_{x}.default.weight"] for x in "AB")
                base_linear(model, layer, linear).add_(ALPHA / RANK * b @ a)
        for name, own, new in (
            ("model.embed_tokens", model.language_model.model.embed_tokens.weight, model.new_tokens.embedding),
            ("lm_head", model.language_model.lm_head.weight, model.new_tokens.head),
        ):
            table = state[f"{LANGUAGE}{name}.modules_to_save.default.weight"]
            own.copy_(table[:start])
            new.copy_(table[start:])
        for published, own in (
            ("mllm.model.mlp1.0", "norm"),
            ("mllm.model.mlp1.1", "linear_1"),
            ("mllm.model.mlp1.3", "linear_2"),
        ):
            for kind in ("weight", "bias"):
                model.projector.get_parameter(f"{own}.{kind}").copy_(state[f"{published}.{kind}"])
        for published, own in (("text_hidden_fcs.0", "linear_1"), ("text_hidden_fcs.2", "linear_2")):
            for kind in ("weight", "bias"):
                model.seg_projector.get_parameter(f"{own}.{kind}").copy_(state[f"{published}.{kind}"])
        prefix = "grounding_encoder.sam2_model.sam_mask_decoder."
        decoder = {
            name.removeprefix(prefix).replace("g_weight", "gamma"): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        model.grounding.sam2.sam_mask_decoder.load_state_dict(decoder)
    return model


def probabilities(model: Sa2VA, base: str) -> np.ndarray:
    predictor = Sa2VAPredictor(model, processor_for(model.config, read_base_folder(base).tokenizer), 0.5)
    return predictor.probabilities([picture(7, 200, 90)], [["Please segment the vessel."]])[0]


def test_adapters_of_every_linear_layer_are_merged_with_the_configs_alpha(
    file: Path, state: dict[str, Tensor], arguments: dict[str, Any], base_model: Sa2VA
) -> None:
    model = build_from_training_file(file, model_config=arguments)[0]
    merge_lora(model)
    for layer in range(2):
        for linear in LINEARS:
            a, b = (state[f"{LANGUAGE}model.layers.{layer}.{linear}.lora_{x}.default.weight"] for x in "AB")
            expected = base_linear(base_model, layer, linear).double() + 3.0 * b.double() @ a.double()
            found = base_linear(model, layer, linear)
            torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
            assert (found - base_linear(base_model, layer, linear)).abs().max() > 1e-2


def test_tables_become_base_rows_and_new_rows(loaded: Sa2VA, base_model: Sa2VA, state: dict[str, Tensor]) -> None:
    start = loaded.new_tokens.start
    for name, table, new, own in (
        ("model.embed_tokens", EMBEDDING, loaded.new_tokens.embedding, loaded.language_model.model.embed_tokens.weight),
        ("lm_head", HEAD, loaded.new_tokens.head, loaded.language_model.lm_head.weight),
    ):
        given = state[f"{LANGUAGE}{name}.modules_to_save.default.weight"]
        assert torch.equal(new, given[start:]) and torch.equal(own, given[:start])
        before = base_model.get_parameter(table)
        assert (own != before).any(1).nonzero().flatten().tolist() == list(CHANGED)
        assert table in loaded.changed_by_load


def test_what_is_said_about_rows_and_alpha(
    file: Path, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        build_from_training_file(file, model_config=arguments)
    rows = len(load_table(arguments))
    assert f"3 of {rows} rows of the base's {EMBEDDING} are changed and kept" in caplog.text
    assert "does not hold LoRA's alpha: 12 from the config is used (scale 3)" in caplog.text


def load_table(arguments: dict[str, Any]) -> Tensor:
    return build_model(**arguments).language_model.model.embed_tokens.weight


def test_unchanged_tables_are_left_to_the_base(base_model: Sa2VA, arguments: dict[str, Any], tmp_path: Path) -> None:
    file = save(qwen2_state(base_model, RANK, ()), tmp_path / "iter_1.pth")
    model = build_from_training_file(file, model_config=arguments)[0]
    assert EMBEDDING not in model.changed_by_load and HEAD not in model.changed_by_load
    assert EMBEDDING not in trained_state(model)


def test_predictions_equal_those_of_a_model_put_together_by_hand(
    loaded: Sa2VA, arguments: dict[str, Any], state: dict[str, Tensor], base_model: Sa2VA
) -> None:
    expected = probabilities(by_hand(arguments, state), arguments["base"])
    np.testing.assert_allclose(probabilities(loaded, arguments["base"]), expected, atol=1e-5)
    assert np.abs(probabilities(base_model.eval(), arguments["base"]) - expected).max() > 1e-3


@pytest.mark.slow
def test_a_converted_folder_answers_as_the_model_put_together_by_hand(
    file: Path, arguments: dict[str, Any], state: dict[str, Tensor], tmp_path: Path
) -> None:
    picture(1).save(tmp_path / "1.png")
    convert(file, tmp_path / "out", [tmp_path / "1.png"], model_config=arguments)
    found = load_predictor(tmp_path / "out", device="cpu").model
    expected = probabilities(by_hand(arguments, state), arguments["base"])
    np.testing.assert_allclose(probabilities(found, str(tmp_path / "out")), expected, atol=1e-5)
    assert "0.50, a default, not chosen on a split" in (tmp_path / "out" / "README.md").read_text()


def test_what_a_start_from_it_changed_is_in_later_checkpoints(
    file: Path, loaded: Sa2VA, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Our defaults train no projector and freeze parts of the mask decoder: both come from the file and must stay."""
    model = build_model(**arguments)
    load_trained(model, file)
    for name in ("projector.linear_1.weight", "grounding.sam2.sam_mask_decoder.iou_prediction_head.layers.0.weight"):
        assert not model.get_parameter(name).requires_grad and name in trained_state(model)
    own = save_checkpoint(model, tmp_path / "iter_1.pth", arguments)
    again = build_from_training_file(own)[0].state_dict()
    assert all(torch.equal(again[name], value) for name, value in loaded.state_dict().items())
    # and once more, from a start from our own checkpoint
    third = build_model(**arguments)
    load_trained(third, own)
    assert trained_state(third).keys() == trained_state(model).keys()


def test_a_file_without_mlp1_takes_the_bases(base_model: Sa2VA, arguments: dict[str, Any], tmp_path: Path) -> None:
    state = {name: value for name, value in qwen2_state(base_model, RANK, ()).items() if ".mlp1." not in name}
    model = build_from_training_file(save(state, tmp_path / "x.pth"), model_config=arguments)[0]
    assert torch.equal(model.projector.linear_1.weight, base_model.projector.linear_1.weight)


def test_mmengines_histories_are_not_read(state: dict[str, Tensor], arguments: dict[str, Any], tmp_path: Path) -> None:
    buffer = HistoryBuffer([0.5, 0.25], [1, 1])
    hub = {"log_scalars": {"train/loss": buffer}, "runtime_info": {"iter": 3672, "loss": np.float64(0.3)}}
    file = save(state, tmp_path / "iter_2.pth", message_hub=hub, param_schedulers=[{"last_step": 3}])
    content = read_training_file(file, arguments)
    assert content["meta"] == {"iter": 3672} and content["state_dict"].keys() == state.keys()


def change(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    adapter = f"{LANGUAGE}model.layers.0.mlp.up_proj.lora_A.default.weight"
    table = f"{LANGUAGE}lm_head.modules_to_save.default.weight"
    if kind == "missing":
        return {name: value for name, value in state.items() if "text_hidden_fcs" not in name and name != adapter}
    if kind == "unexpected":
        return {**state, "mllm.model.surplus.weight": torch.zeros(2)}
    if kind == "table":
        return {**state, table: state[table][:-1]}
    if kind == "width":
        return {**state, "text_hidden_fcs.0.bias": torch.zeros(3)}
    return {name: value[:2] if "lora_A" in name else value for name, value in state.items()}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            "missing",
            r"5 missing: language_model\.model\.layers\.0\.mlp\.up_proj\.lora_A\.default\.weight, seg_projector",
        ),
        ("unexpected", r"1 unexpected: surplus\.weight"),
        ("table", r"1 misshapen: language_model\.lm_head\.weight is \(\d+, 64\), expected \d+ rows"),
        ("width", r"1 misshapen: seg_projector\.linear_1\.bias is \(3,\), expected \(64,\)"),
        ("rank", r"its adapters have rank 2, the model has lora\.r = 4; set .*lora\.r=2"),
    ],
)
def test_a_file_that_does_not_fit_says_why(
    kind: str, reason: str, state: dict[str, Tensor], arguments: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=reason) as raised:
        build_from_training_file(save(change(state, kind), tmp_path / "x.pth"), model_config=arguments)
    assert str(tmp_path / "x.pth") in str(raised.value)


def test_what_the_file_does_not_hold_must_be_given(file: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"iter_3672\.pth: a checkpoint of the published code, which holds no"):
        load_predictor(file, device="cpu")
    with pytest.raises(WeightsError, match=r"set\s+model\.sa2va\.sam2\.checkpoint"):
        build_from_training_file(file, model_config={**arguments, "sam2": SAM2})
    with pytest.raises(WeightsError, match=r'the model has no adapters; set model\.sa2va\.trainable\.llm="lora"'):
        build_from_training_file(file, model_config={**arguments, "trainable": {"llm": "full"}})


def test_a_folder_of_deepspeed_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"zero_to_fp32\.py"):
        read_training_file(tmp_path)


def test_adapters_of_internlm2s_fused_projection(tmp_path: Path, sam2_file: Path) -> None:
    """One adapter beside the fused wqkv becomes three, whose merge is the merge of the fused one."""
    published = write_internlm2_base(tmp_path / "base")
    arguments = {"base": str(tmp_path / "base"), "sam2": {**SAM2, "checkpoint": str(sam2_file)}}
    arguments["lora"] = {"r": RANK, "alpha": ALPHA, "dropout": 0.0}
    model = build_model(**arguments)
    draw = torch.Generator().manual_seed(2)
    state = {}
    linears = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
    names = [f"model.layers.{layer}.{linear}" for layer in range(2) for linear in linears]
    for name in names:
        rows, columns = published[f"language_model.{name}.weight"].shape
        state[f"{LANGUAGE}{name}.lora_A.default.weight"] = torch.randn(RANK, columns, generator=draw)
        state[f"{LANGUAGE}{name}.lora_B.default.weight"] = torch.randn(rows, RANK, generator=draw)
    for name in ("model.tok_embeddings", "output"):
        table = torch.cat([published[f"language_model.{name}.weight"], torch.randn(5, 64, generator=draw)])
        state[f"{LANGUAGE}{name}.modules_to_save.default.weight"] = table
    state |= heads_state(model, lambda *shape: torch.randn(*shape, generator=draw))
    merged = build_from_training_file(save(state, tmp_path / "x.pth"), model_config=arguments)[0]
    merge_lora(merged)
    found = published_state(merged, torch.float32)
    for name in names:
        a, b = (state[f"{LANGUAGE}{name}.lora_{x}.default.weight"] for x in "AB")
        expected = published[f"language_model.{name}.weight"] + ALPHA / RANK * b @ a
        torch.testing.assert_close(found[f"language_model.{name}.weight"], expected, atol=1e-5, rtol=1e-6)
    for name in ("model.tok_embeddings", "output"):
        expected = state[f"{LANGUAGE}{name}.modules_to_save.default.weight"]
        assert torch.equal(found[f"language_model.{name}.weight"], expected)


def test_a_table_shared_by_embedding_and_head_is_told_apart(tmp_path: Path, sam2_file: Path) -> None:
    """The 1B and 4B models tie them; the published code trains two copies."""
    base = Path(shutil.copytree(write_tiny(tmp_path / "untied"), tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = True
    (base / "config.json").write_text(json.dumps(config))
    weights = load_file(base / "model.safetensors")
    del weights["language_model.lm_head.weight"]
    save_file(weights, base / "model.safetensors")
    arguments = {"base": str(base), "sam2": {**SAM2, "checkpoint": str(sam2_file)}, "lora": {"r": RANK, "alpha": ALPHA}}
    tied = build_model(**arguments)
    assert tied.language_model.lm_head.weight is tied.language_model.model.embed_tokens.weight
    state = qwen2_state(tied, RANK, ())
    state[f"{LANGUAGE}lm_head.modules_to_save.default.weight"][7] += 1  # the head alone moves
    model = build_model(**arguments)
    load_trained(model, save(state, tmp_path / "x.pth"))
    changed = model.language_model.lm_head.weight != model.language_model.model.embed_tokens.weight
    assert changed.any(1).nonzero().flatten().tolist() == [7]
    own = save_checkpoint(model, tmp_path / "iter_1.pth", arguments)
    again = build_from_training_file(own)[0]
    assert torch.equal(again.language_model.lm_head.weight, model.language_model.lm_head.weight)
    assert torch.equal(again.language_model.model.embed_tokens.weight, tied.language_model.model.embed_tokens.weight)


def write_tiny(folder: Path) -> Path:
    write_tiny_base(folder)
    return folder


class Calls:
    """A pickle entry that calls something while it is opened."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def test_code_in_the_file_is_refused_and_not_run(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = save(state, tmp_path / "x.pth", hook=Calls(Path.touch, tmp_path / "sprung"))
    with pytest.raises(WeightsError, match=r"x\.pth: refused, .*\(Unsupported global: GLOBAL pathlib"):
        read_training_file(file, {})
    # The names that mmengine's histories need are taken by stand-ins: they open no way to anything that runs.
    file = save(state, tmp_path / "y.pth", hook=Calls(getattr, HistoryBuffer, "mean"))
    assert read_training_file(file, {})["state_dict"].keys() == state.keys()
    content = torch.load(file, weights_only=False)
    assert content["hook"] is HistoryBuffer.mean  # what an unguarded reader would have reached
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_sam2_that_is_cut_short_or_carries_code(arguments: dict[str, Any], tmp_path: Path) -> None:
    whole = Path(arguments["sam2"]["checkpoint"]).read_bytes()
    file = tmp_path / "sam2_hiera_tiny.pt"
    changed = {**arguments, "sam2": {**SAM2, "checkpoint": str(file)}}
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"sam2_hiera_tiny\.pt: refused, .* It is truncated or contains code"):
        build_model(**changed)
    torch.save({"model": {"weight": torch.zeros(1)}, "hook": Calls(Path.touch, tmp_path / "sprung")}, file)
    with pytest.raises(WeightsError, match=r"sam2_hiera_tiny\.pt: refused"):
        build_model(**changed)
    assert not (tmp_path / "sprung").exists()
