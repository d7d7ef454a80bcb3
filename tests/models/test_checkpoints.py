from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import nn

from tests.tiny import SAM2, model_arguments, save_checkpoint, shaken_model
from vesselseg.errors import WeightsError
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.load import load_weights
from vesselseg.models.checkpoints.shards import stream_file, stream_folder
from vesselseg.models.checkpoints.training_file import build_from_training_file, load_trainable, read_training_file
from vesselseg.models.lora import checkpoint_state


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A base folder of one's own, to break."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change_config(folder: Path, change: Callable[[dict], object]) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


def change_weights(folder: Path, change: Callable[[dict], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def shard(folder: Path) -> dict[str, str]:
    """Two files and their index instead of one file."""
    state = load_file(folder / "model.safetensors")
    files: dict[str, dict] = {"model-1-of-2.safetensors": {}, "model-2-of-2.safetensors": {}}
    index = {}
    for number, name in enumerate(sorted(state)):
        index[name] = list(files)[number % 2]
        files[index[name]][name] = state[name]
    for file, part in files.items():
        save_file(part, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return index


def build(folder: Path) -> nn.Module:
    return build_model(str(folder), sam2=SAM2, trainable={"llm": "frozen"})


def message_of(folder: Path) -> str:
    with pytest.raises(WeightsError) as raised:
        build(folder)
    assert str(folder) in str(raised.value)
    return str(raised.value)


def test_shards_and_pickles_hold_the_same_model(folder: Path, tiny_base: Path) -> None:
    expected = build(tiny_base).state_dict()
    shard(folder)
    again = build(folder).state_dict()
    big = [name for name in expected if name.startswith(("vision_model.", "projector.", "language_model."))]
    assert all(torch.equal(again[name], expected[name]) for name in big)
    state = dict(stream_folder(folder))
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    pickled = build(folder).state_dict()
    assert all(torch.equal(pickled[name], expected[name]) for name in big)


def test_all_wrong_keys_are_counted_and_the_first_five_shown(folder: Path) -> None:
    def change(state: dict) -> None:
        for name in [name for name in state if ".mlp.fc1." in name or ".ls" in name]:
            del state[name]
        state["surplus.weight"] = torch.zeros(2)
        state["mlp1.1.weight"] = torch.zeros(3, 4)

    change_weights(folder, change)
    message = message_of(folder)
    assert "8 missing: vision_model.encoder.layer.0.lambda_1" in message and " and 3 more" in message
    assert message.count("vision_model.encoder.layer.") == 5
    assert "1 unexpected: surplus.weight" in message
    assert "1 misshapen: projector.linear_1.weight is (3, 4), expected (64, 256)" in message


def test_a_tensor_of_another_type_is_converted(folder: Path) -> None:
    change_weights(folder, lambda state: state.update({name: value.bfloat16() for name, value in state.items()}))
    assert {parameter.dtype for parameter in build(folder).parameters()} == {torch.float32}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAK_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: cut(f / "model.safetensors"), "not readable as safetensors"),
    "a pointer of git lfs": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "not readable as safetensors",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "not readable as safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors, pytorch_model.bin or index"),
    "no config": (lambda f: (f / "config.json").unlink(), "must be a folder with config.json, tokenizer and weights"),
    "config cut off": (lambda f: cut(f / "config.json"), "not readable as JSON"),
    "config in another encoding": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "not readable as JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), "expected an object in braces, found a list"),
    "no llm_config": (
        lambda f: change_config(f, lambda c: c.pop("llm_config")),
        "model_type 'internvl_chat' without llm_config and vision_config; expected an InternVL",
    ),
    "llm_config is null": (lambda f: change_config(f, lambda c: c.update(llm_config=None)), "without llm_config"),
    "no sizes": (
        lambda f: change_config(
            f, lambda c: (c["llm_config"].pop("vocab_size"), c["vision_config"].pop("hidden_size"))
        ),
        "lacks llm_config.vocab_size, vision_config.hidden_size",
    ),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("*token*")] + [path.unlink() for path in f.glob("vocab*")],
        "holds no tokenizer",
    ),
    "tokenizer cut off": (lambda f: cut(f / "tokenizer.json"), "its tokenizer cannot be read"),
    "wrong vocabulary": (
        lambda f: change_config(f, lambda c: c["llm_config"].update(vocab_size=100)),
        "vocab_size in config.json is 100",
    ),
}


@pytest.mark.parametrize("kind", BREAK_FILES)
def test_a_broken_folder_says_what_is_wrong(folder: Path, kind: str) -> None:
    change, reason = BREAK_FILES[kind]
    change(folder)
    assert reason in message_of(folder)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert "does not exist" in message_of(tmp_path / "nowhere")


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(folder / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": content["model_max_length"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert "the tokenizer lacks <img>, </img>, <IMG_CONTEXT>" in message_of(folder)


def test_new_tokens_out_of_order(folder: Path) -> None:
    tokenizer = read_base_folder(folder).tokenizer.__class__.from_pretrained(folder)
    tokenizer.add_tokens(["<p>", "[SEG]"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    change_config(folder, lambda c: c["llm_config"].update(vocab_size=len(tokenizer)))
    assert "expected consecutive ones in this order" in message_of(folder)


def test_a_missing_shard_and_a_short_one(folder: Path) -> None:
    index = shard(folder)
    moved = folder / "model-2-of-2.safetensors"
    state = load_file(moved)
    moved.unlink()
    assert "1 of 2 shards are missing, first model-2-of-2.safetensors" in message_of(folder)
    lost = min(name for name, file in index.items() if file == moved.name)
    save_file({name: value for name, value in state.items() if name != lost}, moved)
    assert f"lacks 1 tensors of its index, first {lost}" in message_of(folder)
    (folder / "model.safetensors.index.json").write_text('{"weights": {}}')
    assert "not an index of shards" in message_of(folder)


class Trap:
    """What a pickle may hold: a call that runs while it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_is_refused_and_not_run(folder: Path, tmp_path: Path, save: Callable) -> None:
    (folder / "model.safetensors").unlink()
    save({"weight": torch.zeros(1), "trap": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    assert "refused, since it cannot be opened as plain tensors" in message_of(folder)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_that_is_no_state_dict(tmp_path: Path) -> None:
    torch.save({"model": {"a": 3}}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x\.pt: holds no state dict of tensors"):
        list(stream_file(tmp_path / "x.pt"))


def test_loading_may_miss_and_may_ignore_what_it_is_told() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    stream = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "old.inv_freq": torch.ones(2)}
    with pytest.raises(WeightsError, match=r"here: [\s\S]*2 missing: b.weight, b.bias\n  1 unexpected: old.inv_freq"):
        load_weights(model, iter(stream.items()), "here")
    load_weights(model, iter(stream.items()), "here", may_miss=r"^b\.", may_ignore="inv_freq")
    assert model["a"].weight.eq(1).all() and not model["b"].weight.eq(1).all()


def test_weights_on_the_meta_device_are_made_where_and_as_asked() -> None:
    model = nn.Linear(2, 2, device="meta")
    source = torch.ones(2, 2)
    load_weights(model, iter({"weight": source, "bias": torch.ones(2)}.items()), "here", dtype=torch.bfloat16)
    assert model.weight.dtype == torch.bfloat16 and not model.weight.is_meta
    other = nn.Linear(2, 2, device="meta")
    load_weights(other, iter({"weight": source, "bias": torch.ones(2)}.items()), "here")
    source.zero_()
    assert other.weight.eq(1).all()  # a tensor of its own: a memory-mapped file may go away


def test_a_training_checkpoint_gives_the_same_model(tiny_base: Path, tmp_path: Path) -> None:
    model = shaken_model(tiny_base)
    path = save_checkpoint(model, tmp_path / "best.pth", model_arguments(tiny_base, gradient_checkpointing=True))
    loaded, content = build_from_training_file(path)
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert loaded.config.threshold == content["threshold"] == 0.4


def test_a_base_that_has_moved(tiny_base: Path, tmp_path: Path) -> None:
    arguments = {**model_arguments(tiny_base), "base": "weights/gone"}
    path = save_checkpoint(shaken_model(tiny_base), tmp_path / "best.pth", arguments)
    with pytest.raises(WeightsError, match=r"weights/gone/config\.json does not exist"):
        build_from_training_file(path)
    assert build_from_training_file(path, base=str(tiny_base))[0] is not None


def test_a_checkpoint_must_fit_exactly(tiny_base: Path) -> None:
    model = shaken_model(tiny_base)
    state = dict(checkpoint_state(model))
    before = {name: value.clone() for name, value in state.items()}
    broken = {name: value + 1 for name, value in state.items() if name != "new_tokens.head"}
    broken["extra"] = torch.zeros(1)
    broken["seg_projector.linear_2.bias"] = torch.zeros(3)
    with pytest.raises(WeightsError) as raised:
        load_trainable(model, broken, "x.pth")
    message = str(raised.value)
    assert "1 missing: new_tokens.head" in message and "1 unexpected: extra" in message
    assert "1 misshapen: seg_projector.linear_2.bias is (3,), expected (256,)" in message
    assert all(torch.equal(value, before[name]) for name, value in checkpoint_state(model).items())  # left untouched


@pytest.mark.parametrize(
    ("content", "reason"),
    [({"weights": 1}, "lacks state_dict, model_config, threshold"), ([1], "not a checkpoint of vesselseg")],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: object, reason: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=reason):
        read_training_file(tmp_path / "x.pth")


def test_a_checkpoint_that_is_missing_cut_off_or_carries_code(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist; checkpoints are"):
        read_training_file(tmp_path / "x.pth")
    path = save_checkpoint(shaken_model(tiny_base), tmp_path / "best.pth", model_arguments(tiny_base))
    cut(path)
    with pytest.raises(WeightsError, match=r"best\.pth: refused"):
        read_training_file(path)
    torch.save({"state_dict": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(WeightsError, match=r"best\.pth: refused"):
        read_training_file(path)
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_over_weights_that_are_nowhere(tiny_base: Path, tmp_path: Path) -> None:
    """Its frozen half was drawn when it was trained and cannot be had again."""
    arguments = model_arguments(tiny_base, random_weights=True)
    path = save_checkpoint(shaken_model(tiny_base, random_weights=True), tmp_path / "best.pth", arguments)
    with pytest.raises(WeightsError, match="trained with random_weights=True"):
        build_from_training_file(path)
