"""A tokenizer's files, in words that transformers 4.57 and 5 both read."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

_OF_THIS_MACHINE = ("is_local", "local_files_only", "backend")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """`save_pretrained`, and what transformers 5 writes in other words put into those that 4.57 knows.

    transformers 5 calls further special tokens `extra_special_tokens`, a list, where 4.57 expects a dict of this name
    and fails; `additional_special_tokens` is read by both. Its class `TokenizersBackend` is `PreTrainedTokenizerFast`.
    """
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in _OF_THIS_MACHINE:
        content.pop(name, None)
    if isinstance(content.get("extra_special_tokens"), list):
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
