"""InternLM2's tokenizer against sentencepiece itself, on a small model that is trained here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.models.checkpoints.families import write_internlm2_base
from tests.tiny import SAM2
from vesselseg.dataset.prompts import ANSWER, QUESTIONS
from vesselseg.errors import WeightsError
from vesselseg.inference.processor import processor_for
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import read_base_folder

WORDS = ("blood vessel", "coronary artery", "左侧血管")
TEXT = [question.format(phrase=word) for question in QUESTIONS for word in WORDS]
CHAT = {3: "<|im_end|>", 4: "<|im_start|>"}  # they take the places of pieces that are kept for this
ADDED = ("<img>", "</img>", "<IMG_CONTEXT>")  # they follow behind the last piece


def train(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    settings = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 420, "normalization_rule_name": "identity"}
    settings |= {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "minloglevel": 2}
    settings |= {"character_coverage": 0.98, "user_defined_symbols": ["[UNUSED_1]", "[UNUSED_2]", "<|kept|>"]}
    (folder / "corpus.txt").write_text("\n".join([*TEXT, ANSWER] * 3), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), **{**settings, **options}
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def write_folder(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """tokenizer.model, tokenizer_config.json with auto_map, and code that must not run."""
    folder.mkdir(exist_ok=True)
    pieces = train(folder, **options)
    size = pieces.get_piece_size()
    places = {**dict(enumerate(("<unk>", "<s>", "</s>"))), **CHAT, **dict(enumerate(ADDED, start=size))}
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    settings = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {str(number): {"content": token, **flags} for number, token in places.items()},
        "additional_special_tokens": [*CHAT.values(), *ADDED],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_internlm2.py").write_text("raise SystemExit('code of the folder was run')\n")
    return pieces


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole InternLM2 folder with such a tokenizer."""
    folder = tmp_path_factory.mktemp("internlm2") / "base"
    size = write_folder_size(folder)
    write_internlm2_base(folder, vocabulary=size + len(ADDED))
    return folder


def write_folder_size(folder: Path) -> int:
    return int(write_folder(folder).get_piece_size())


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    return read_base_folder(base).tokenizer


def expected_ids(base: Path, text: str) -> list[int]:
    """sentencepiece on the stretches between added tokens."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    size = pieces.get_piece_size()
    places = {token: number for number, token in {**CHAT, **dict(enumerate((*ADDED, "[SEG]"), start=size))}.items()}
    pattern = "|".join(map(re.escape, places))
    ids: list[int] = []
    for part in re.split(f"({pattern})", text):
        ids += [places[part]] if part in places else pieces.encode(part)
    return ids


SAMPLES = [
    "Please segment blood vessel in this image.",
    "a piece <|kept|> as it is",
    "  two  spaces and a tab\tand\nlines ",
    "左侧血管 ünïcödé 🩺 ½",
    "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\nWhere?<|im_end|>\n<|im_start|>assistant\nIt is [SEG].",
    "",
]


@pytest.mark.parametrize("text", SAMPLES)
def test_ids_are_those_of_sentencepiece(text: str, base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == expected_ids(base, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer(text)["input_ids"] == [1, *ids]


@pytest.mark.parametrize("options", [{"add_dummy_prefix": True}, {"remove_extra_whitespaces": True}])
def test_other_rules_of_the_file_are_followed(options: dict[str, bool], tmp_path: Path) -> None:
    folder = tmp_path / "base"
    size = int(write_folder(folder, **options).get_piece_size())
    write_internlm2_base(folder, vocabulary=size + len(ADDED))
    tokenizer = read_base_folder(folder).tokenizer
    for text in ("Please  segment the blood vessel", " artery "):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected_ids(folder, text)


def test_new_tokens_follow_and_a_conversation_opens_with_s(base: Path) -> None:
    folder = read_base_folder(base)
    assert folder.config.new_token_start == folder.config.llm_config["vocab_size"]
    ids, labels = processor_for(folder.config, folder.tokenizer).tokens.encode([("Where?", ANSWER)], 2)
    text = "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    assert ids.tolist() == [1, *expected_ids(base, text), *expected_ids(base, f"{ANSWER}<|im_end|>")]
    assert labels[0] == -100 and int((ids == folder.config.new_token_start).sum()) == 1


def test_it_is_saved_so_that_no_code_is_needed(base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert all(again(text)["input_ids"] == tokenizer(text)["input_ids"] for text in SAMPLES)
    assert build_model(str(base), sam2=SAM2, trainable={"llm": "frozen"}).new_tokens.seg_id == len(tokenizer) - 5


def test_broken_tokenizers_say_what_is_wrong(base: Path, tmp_path: Path) -> None:
    def broken(name: str, content: bytes) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file in ("config.json", "tokenizer_config.json"):
            (folder / file).write_bytes((base / file).read_bytes())
        if content:
            (folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(WeightsError) as raised:
            read_base_folder(folder)
        assert str(folder) in str(raised.value)
        return str(raised.value)

    whole = (base / "tokenizer.model").read_bytes()
    assert "does not exist; it is InternLM2's vocabulary" in broken("missing", b"")
    assert "not a sentencepiece model" in broken("cut", whole[:1000])
    train(tmp_path, model_type="unigram", vocab_size=300)
    assert "not a BPE model of sentencepiece" in broken("unigram", (tmp_path / "tokenizer.model").read_bytes())
    train(tmp_path, vocab_size=400)
    assert "do not fit each other: " in broken("another", (tmp_path / "tokenizer.model").read_bytes())
