"""Tokenizer files in words of both lines of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vesselseg.models.checkpoints.tokenizer_files import read_tokenizer
from vesselseg.models.checkpoints.tokenizer_writing import save_tokenizer
from vesselseg.models.tiny_base import tiny_tokenizer

FIVE = {"extra_special_tokens": ["<|im_start|>", "<img>"], "backend": "tokenizers", "is_local": True}


class WrittenByFive:
    """A tokenizer whose files are those of transformers 5, whatever line is installed."""

    def __init__(self, changes: dict[str, Any]) -> None:
        self.changes = changes

    def save_pretrained(self, folder: Path) -> None:
        tiny_tokenizer().save_pretrained(folder)
        path = Path(folder) / "tokenizer_config.json"
        content = json.loads(path.read_text())
        content.pop("additional_special_tokens", None)
        content.pop("extra_special_tokens", None)
        path.write_text(json.dumps({**content, **self.changes}))


@pytest.mark.parametrize("named", ["TokenizersBackend", "Qwen2Tokenizer"])
def test_what_transformers_5_writes_is_read_by_both(tmp_path: Path, named: str) -> None:
    save_tokenizer(WrittenByFive({**FIVE, "tokenizer_class": named}), tmp_path)  # type: ignore[arg-type]
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert content["additional_special_tokens"] == FIVE["extra_special_tokens"]
    assert not {"extra_special_tokens", "backend", "is_local"} & set(content)
    assert content["tokenizer_class"] == {"TokenizersBackend": "PreTrainedTokenizerFast"}.get(named, named)
    expected = tiny_tokenizer()("Please segment<img>")["input_ids"]
    for tokenizer in (AutoTokenizer.from_pretrained(tmp_path), read_tokenizer(tmp_path, "qwen2")):
        assert tokenizer("Please segment<img>")["input_ids"] == expected


def test_the_installed_line_writes_and_reads_its_own(tmp_path: Path) -> None:
    save_tokenizer(tiny_tokenizer(), tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "<img>" in content["additional_special_tokens"] and not content.get("extra_special_tokens")
    assert read_tokenizer(tmp_path, "qwen2").get_vocab() == tiny_tokenizer().get_vocab()
