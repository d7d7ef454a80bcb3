"""Names in a folder's JSON files that a library resolves to code or to the network, and what each may say.

Every way in (base, published, exported and distilled folders, tokenizers, a checkpoint's settings) checks these before
a library sees the content. What is only dropped never reaches a library or a folder that is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vesselseg.errors import WeightsError
from vesselseg.models.checkpoints.json_files import read_json_object

ATTENTION: Final = ("sdpa", "eager", "flash_attention_2")
ACTIVATIONS: Final = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu")
ROPE_TYPES: Final = ("default", "linear", "dynamic", "yarn", "llama3")
DTYPES: Final = ("float32", "float16", "bfloat16")
NOTHING: Final = ()  # only null, false and empty containers

# name, wherever it stands -> the texts that it may have
RESOLVED: Final[dict[str, tuple[str, ...]]] = {
    "attn_implementation": ATTENTION,
    "_attn_implementation": ATTENTION,
    "_attn_implementation_internal": ATTENTION,
    "experts_implementation": NOTHING,
    "_experts_implementation": NOTHING,
    "hidden_act": ACTIVATIONS,
    "hidden_activation": ACTIVATIONS,
    "activation": ACTIVATIONS,
    "activation_function": ACTIVATIONS,
    "projector_hidden_act": ACTIVATIONS,
    "rope_type": ROPE_TYPES,
    "dtype": DTYPES,
    "torch_dtype": DTYPES,
    "quantization_config": NOTHING,
    "quant_method": NOTHING,
    "compression_config": NOTHING,
    "use_kernels": NOTHING,
    "kernel_config": NOTHING,
    "hub_kernels": NOTHING,
    "tokenizer_file": NOTHING,
    "vocab_file": NOTHING,
    "merges_file": NOTHING,
    "gguf_file": NOTHING,
    "fast_tokenizer_files": NOTHING,
    "tokenizer_object": NOTHING,
    "from_slow": NOTHING,
    "init_inputs": NOTHING,
    "__slow_tokenizer": NOTHING,
}
# Published folders name code here, which is never fetched or run: the names are passed over and not written again.
DROPPED: Final = ("auto_map", "custom_pipelines", "custom_generate", "_name_or_path", "_commit_hash", "processor_class")


def forbidden(content: Any, resolved: dict[str, tuple[str, ...]] = RESOLVED) -> list[str]:
    """What stands in a JSON content and may not, one sentence each."""
    return [
        f"{path} is {shown(value)}; supported: {', '.join(resolved[name]) or 'none'}"
        for path, name, value in entries(content)
        if name in resolved and not _allowed(value, resolved[name])
    ]


def check_config_file(folder: Path) -> None:
    """Raise WeightsError where a folder's config.json says what may not be said."""
    problems = forbidden(read_json_object(folder / "config.json"))
    if problems:
        raise WeightsError(f"{folder / 'config.json'}: {'; '.join(problems[:5])}. Take another model")


def without_dropped(content: Any) -> Any:
    """A copy of a JSON content without the names that say whose code reads it."""
    if isinstance(content, dict):
        return {name: without_dropped(value) for name, value in content.items() if name not in DROPPED}
    return [without_dropped(value) for value in content] if isinstance(content, list) else content


def holds_text(content: Any) -> bool:
    """Whether a text stands anywhere in a JSON content, but for names."""
    if isinstance(content, dict | list):
        return any(holds_text(value) for value in (content.values() if isinstance(content, dict) else content))
    return isinstance(content, str)


def entries(content: Any) -> Iterator[tuple[str, str, Any]]:
    """(dotted path, name, value) of every entry of every object in it, at any depth."""
    left = [("", content)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            for name, inner in value.items():
                yield f"{path}{name}", name, inner
                left.append((f"{path}{name}.", inner))
        elif isinstance(value, list):
            left += [(f"{path}{number}.", inner) for number, inner in enumerate(value)]


def shown(value: Any) -> str:
    """A value of any size in a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _allowed(value: Any, texts: tuple[str, ...]) -> bool:
    """Objects by part ({"text_config": "sdpa"}, in a newer transformers) are walked by their entries' values."""
    if value is None or value is False or value == "" or value == [] or value == {}:
        return True
    if isinstance(value, dict) and texts:
        return all(_allowed(inner, texts) for inner in value.values())
    return isinstance(value, str) and value in texts
