from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import InternVLConfig, InternVLForConditionalGeneration

from tests.samples import batch_of, losses_of, processor_of
from tests.tiny import SAM2, model_arguments
from vesselseg.errors import WeightsError
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import mean_rows, read_base_folder
from vesselseg.models.checkpoints.load import load_weights
from vesselseg.models.internvl import encode_patches
from vesselseg.models.sam2_grounding import build_sam2
from vesselseg.models.tiny_base import tiny_tokenizer


def test_every_published_tensor_arrives(tiny_base: Path) -> None:
    """Read by names written out here, not by the package's own table of names."""
    model = build_model(**model_arguments(tiny_base, trainable={"llm": "frozen"}))
    file, state = load_file(tiny_base / "model.safetensors"), model.state_dict()
    assert torch.equal(state["projector.linear_1.weight"], file["mlp1.1.weight"])
    assert torch.equal(state["projector.linear_2.bias"], file["mlp1.3.bias"])
    layer = "vision_model.encoder.layer.1."
    fused = torch.cat([state[f"{layer}attention.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(fused, file["vision_model.encoder.layers.1.attn.qkv.weight"])
    assert torch.equal(state[f"{layer}lambda_2"], file["vision_model.encoder.layers.1.ls2"])
    llm = {name: value for name, value in file.items() if name.startswith("language_model.")}
    assert len(llm) > 20 and all(torch.equal(state[name], value) for name, value in llm.items())


def test_new_rows_start_near_the_mean_of_each_table(tiny_base: Path) -> None:
    model = build_model(**model_arguments(tiny_base))
    file = load_file(tiny_base / "model.safetensors")
    assert len(file["language_model.model.embed_tokens.weight"]) == model.new_tokens.start
    for rows, table in (("embedding", "language_model.model.embed_tokens"), ("head", "language_model.lm_head")):
        found = getattr(model.new_tokens, rows).detach()
        assert torch.equal(found, mean_rows(file[f"{table}.weight"], 5))


def test_what_no_file_held_is_remembered(tiny_base: Path) -> None:
    model = build_model(**model_arguments(tiny_base))
    assert model.randomly_initialised == ("seg_projector.", "new_tokens.", "grounding.")


def test_a_sam2_file_is_read_strictly(tiny_base: Path, tmp_path: Path) -> None:
    state = build_sam2({**SAM2, "version": "2.0"}).state_dict()
    torch.save({"model": state}, tmp_path / "sam2_hiera_tiny.pt")
    model = build_model(str(tiny_base), sam2={**SAM2, "checkpoint": str(tmp_path / "sam2_hiera_tiny.pt")})
    assert model.randomly_initialised == ("seg_projector.", "new_tokens.")
    assert all(torch.equal(value, state[name]) for name, value in model.grounding.sam2.state_dict().items())
    newer = {**SAM2, "version": "2.1", "checkpoint": str(tmp_path / "sam2_hiera_tiny.pt")}
    with pytest.raises(
        WeightsError, match=r"sam2_hiera_tiny\.pt: the weights do not fit[\s\S]* missing: no_obj_embed_spatial"
    ):
        build_model(str(tiny_base), sam2=newer)
    with pytest.raises(WeightsError, match=r"nowhere\.pt does not exist"):
        build_model(str(tiny_base), sam2={**SAM2, "checkpoint": str(tmp_path / "nowhere.pt")})


def test_random_weights_have_the_shapes_and_run(tiny_base: Path) -> None:
    drawn = build_model(**model_arguments(tiny_base, random_weights=True))
    read = build_model(**model_arguments(tiny_base))
    shapes = {name: value.shape for name, value in read.state_dict().items()}
    assert {name: value.shape for name, value in drawn.state_dict().items()} == shapes
    name = "language_model.model.layers.0.mlp.up_proj.base_layer.weight"
    assert not torch.equal(drawn.get_parameter(name), read.get_parameter(name))
    batch = batch_of(processor_of(drawn, tiny_base), 0)
    assert all(torch.isfinite(loss) for loss in losses_of(drawn, batch).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_type_of_weights_and_of_what_must_stay_exact(tiny_base: Path, dtype: torch.dtype | str) -> None:
    before = torch.get_default_dtype()
    model = build_model(**model_arguments(tiny_base, dtype=dtype))
    assert torch.get_default_dtype() == before
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(value.is_meta for value in model.state_dict().values())
    exact = build_model(**model_arguments(tiny_base))
    assert torch.equal(model.language_model.model.rotary_emb.inv_freq, exact.language_model.model.rotary_emb.inv_freq)
    matrix = model.grounding.sam2.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    assert matrix.dtype == torch.float32


def test_a_failed_build_leaves_the_default_type_alone(tiny_base: Path) -> None:
    with pytest.raises(ValueError):
        build_model(**model_arguments(tiny_base, sam2={**SAM2, "image_size": 100}, dtype="bfloat16"))
    assert torch.get_default_dtype() == torch.float32


def test_loading_goes_through_assign_where_one_is_given(tiny_base: Path) -> None:
    """ZeRO-3 fills partitioned parameters in its own way."""
    folder, filled = read_base_folder(tiny_base), []
    model = build_model(**model_arguments(tiny_base, trainable={"llm": "frozen"}))
    stream = ((name, tensor) for name, tensor in folder.stream())
    load_weights(
        model, stream, "here", may_miss="^(seg_projector|grounding)", assign=lambda target, _: filled.append(target)
    )
    expected = [name for name in model.state_dict() if not name.startswith(("seg_projector", "grounding"))]
    assert len(filled) == len(expected)


def hf_folder(folder: Path, tied: bool) -> InternVLForConditionalGeneration:
    """A folder as transformers itself writes it, every weight moved."""
    tokenizer = tiny_tokenizer()
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer) + 7,  # padded, as real tables are
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "tie_word_embeddings": tied,
    }
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": [112, 112],
        "patch_size": [14, 14],
        "attention_bias": True,
        "use_qk_norm": False,
    }
    token = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=token, image_seq_length=16, tie_word_embeddings=tied
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_transformers_own_folder_gives_transformers_own_answer(tmp_path: Path, tied: bool) -> None:
    theirs = hf_folder(tmp_path, tied)
    assert read_base_folder(tmp_path).layout == "internvl_hf"
    ours = build_model(str(tmp_path), sam2=SAM2, trainable={"llm": "frozen"}).eval()
    text = f"look <img>{'<IMG_CONTEXT>' * 32}</img> where is the vessel"
    ids = torch.tensor(tiny_tokenizer()(text)["input_ids"])
    pixels = torch.randn(2, 3, 112, 112)
    expected = theirs(input_ids=ids.unsqueeze(0), pixel_values=pixels, output_hidden_states=True)
    tiles = ours.projector(encode_patches(ours.vision_model, ours.projector, pixels))
    hidden = ours.read(ours.pack([ids]), tiles).unsqueeze(0)
    torch.testing.assert_close(hidden, expected.hidden_states[-1])
    logits = ours.new_tokens.logits(ours.language_model.lm_head, hidden)
    start = ours.new_tokens.start
    torch.testing.assert_close(logits[..., :start], expected.logits[..., :start])
    assert start == len(tiny_tokenizer()) < logits.shape[-1]


def test_tied_tables_stay_one_tensor(tmp_path: Path) -> None:
    hf_folder(tmp_path, tied=True)
    language = build_model(str(tmp_path), sam2=SAM2).language_model
    assert language.lm_head.weight is language.model.embed_tokens.weight
    assert not language.lm_head.weight.is_meta


def test_a_config_that_leaves_out_transformers_defaults(tmp_path: Path) -> None:
    """transformers writes only what differs from its own defaults, e.g. no hidden_act and no eps."""
    hf_folder(tmp_path, tied=False)
    content = json.loads((tmp_path / "config.json").read_text())
    for part, names in {
        "text_config": ("rms_norm_eps", "rope_theta", "hidden_act", "tie_word_embeddings"),
        "vision_config": ("hidden_act", "layer_norm_eps", "norm_type", "use_qk_norm"),
    }.items():
        for name in names:
            content[part].pop(name, None)
    content.pop("downsample_ratio")
    expected = build_model(str(tmp_path), sam2=SAM2).config
    (tmp_path / "config.json").write_text(json.dumps(content))
    found = build_model(str(tmp_path), sam2=SAM2).config
    assert found.vision_config == expected.vision_config
    assert found.text().to_dict() == expected.text().to_dict()
