"""A folder's tokenizer, read by a class of this list: nothing in the folder chooses code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vesselseg.errors import WeightsError
from vesselseg.models.checkpoints.internlm2_tokenizer import CLASSES, read_internlm2_tokenizer
from vesselseg.models.checkpoints.json_files import read_json_object
from vesselseg.models.checkpoints.resolved_names import DROPPED, forbidden, shown

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_NAMED: Any = transformers  # its stubs of the 5 line lack two names that the package has on both
# tokenizer_class in tokenizer_config.json -> who reads the files
READERS: dict[str, Any] = {
    "Qwen2Tokenizer": _NAMED.Qwen2TokenizerFast,
    "Qwen2TokenizerFast": _NAMED.Qwen2TokenizerFast,
    "LlamaTokenizer": _NAMED.LlamaTokenizerFast,
    "LlamaTokenizerFast": _NAMED.LlamaTokenizerFast,
    "PreTrainedTokenizerFast": PreTrainedTokenizerFast,
    "TokenizersBackend": PreTrainedTokenizerFast,  # its name in transformers 5
    **dict.fromkeys(CLASSES),  # by read_internlm2_tokenizer
}


def read_tokenizer(folder: Path, language: str) -> PreTrainedTokenizerBase:
    """language: `llm_config.model_type`, for folders that name no class. Raises WeightsError."""
    if not any((folder / name).exists() for name in FILES):
        expected = "tokenizer.json and tokenizer_config.json, or vocab.json and merges.txt"
        raise WeightsError(f"{folder} holds no tokenizer ({expected}); copy them from where the model came from")
    named = tokenizer_class(folder)
    try:
        if named in CLASSES:
            tokenizer = read_internlm2_tokenizer(folder)
        else:
            reader = READERS[named or ("LlamaTokenizer" if language == "llama" else "Qwen2Tokenizer")]
            tokenizer = reader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except WeightsError:
        raise
    except Exception as error:  # the Rust reader of tokenizer.json raises bare Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{folder}: its tokenizer cannot be read ({reason[:300]}); download it again") from None
    for name in DROPPED:
        tokenizer.init_kwargs.pop(name, None)  # else they are written with the tokenizer, where their code is not
    tokenizer._set_processor_class("")
    return tokenizer


def tokenizer_class(folder: Path) -> str | None:
    """The class that tokenizer_config.json names; raises WeightsError for one that is not in the list."""
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return None
    content = read_json_object(path)
    named = content.get("tokenizer_class")
    problems = forbidden(content)
    if named is not None and (not isinstance(named, str) or named not in READERS):
        problems.append(f"tokenizer_class is {shown(named)}; supported: {', '.join(READERS)}")
    if problems:
        raise WeightsError(f"{path}: {'; '.join(problems[:5])}. Download it again or take another model")
    return named
