"""A small InternVL folder with random weights: the real classes, layout and tokenizer kind, in megabytes.

For the demo, the tests and any machine without downloads. The tokenizer is a byte-level BPE as Qwen2's, trained on the
project's own questions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vesselseg.dataset.prompts import ANSWER, QUESTIONS
from vesselseg.models.checkpoints.published_layout import from_ours
from vesselseg.models.checkpoints.tokenizer_writing import save_tokenizer
from vesselseg.models.internvl import TileProjector, build_language_model, build_vision_tower
from vesselseg.models.sa2va_config import IMAGE_TOKENS, Sa2VAConfig

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PHRASES = ("blood vessel", "vessel", "coronary artery", "catheter", "left", "right", "segment")


def write_tiny_base(
    folder: Path, *, hidden_size: int = 64, layers: int = 2, tile_size: int = 112, seed: int = 0, **text: Any
) -> Sa2VAConfig:
    """Write config.json, tokenizer and model.safetensors; the same seed writes the same bytes.

    hidden_size, layers: of vision tower and language model, each. tile_size: pixels, a multiple of 28.
    text: fields of `llm_config` for another language model than Qwen2, e.g. its `model_type`.
    Raises FileExistsError if the folder holds a model already.
    """
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} holds a model already; name another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer), hidden_size, layers, tile_size)
    config.llm_config.update(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "vision_model": build_vision_tower(config, "sdpa"),
            "projector": TileProjector(hidden_size, hidden_size, config.downsample_ratio),
            "language_model": build_language_model(config, "sdpa"),
        }
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    published = {name: value.contiguous() for name, value in from_ours(state, config).items()}
    save_file(published, str(folder / "model.safetensors"), metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder)
    content = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "llm_config": config.llm_config,
        "vision_config": config.vision_config,
        "force_image_size": tile_size,
        "dynamic_image_size": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 6,
        "use_thumbnail": True,
        "downsample_ratio": 0.5,
        "template": "internvl2_5",
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return config


def tiny_config(vocabulary: int, hidden_size: int, layers: int, tile_size: int) -> Sa2VAConfig:
    """Shapes of the tiny model: head width 16, MLP twice the hidden size."""
    heads = hidden_size // 16
    vision = {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden_size,
        "image_size": tile_size,
        "patch_size": 14,
        "norm_type": "layer_norm",
        "qk_normalization": False,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    text = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "intermediate_size": 2 * hidden_size,
        "max_position_embeddings": 8192,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    return Sa2VAConfig(llm_config=text, vision_config=vision, force_image_size=tile_size, max_dynamic_patch=6)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the project's questions, with the tokens of an InternVL vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    texts = [question.format(phrase=phrase) for question in QUESTIONS for phrase in PHRASES] + [ANSWER] * 10
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([*CHAT_TOKENS, *IMAGE_TOKENS])
    named: Any = transformers  # its stubs of the 5 line lack a name that the package has on both
    tokenizer_with_names: PreTrainedTokenizerFast = named.Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        additional_special_tokens=["<|im_start|>", *IMAGE_TOKENS],
    )
    return tokenizer_with_names
