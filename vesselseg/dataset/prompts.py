"""Chat templates, questions and answers, all defined here."""

from __future__ import annotations

import re
from dataclasses import dataclass

SEG_TOKEN = "[SEG]"
IMAGE_PLACEHOLDER = "<image>"
ANSWER = f"Sure, it is {SEG_TOKEN}."
DEFAULT_PHRASE = "blood vessel"  # if no phrase is given

# Prediction uses the first; training draws from all of them.
QUESTIONS = (
    "Please segment {phrase} in this image.",
    "Please segment the {phrase}.",
    "Can you segment the {phrase} in this image?",
    "Where is the {phrase} in this image? Please answer with a segmentation mask.",
    "Show me the {phrase} as a segmentation mask.",
)


@dataclass(frozen=True)
class ChatTemplate:
    """Text before (`user`) and after (`assistant`) a question, and the end-of-turn token, which is trained too."""

    user: str
    assistant: str
    end: str


# Without a system turn, as published Sa2VA is trained. InternVL's Qwen2 and InternLM2 models share this template.
_CHATML = ChatTemplate("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
TEMPLATES = {"qwen_chat": _CHATML, "internlm2_chat": _CHATML, "internvl2_5": _CHATML}
TURN_SEPARATOR = "\n"  # between one answer's end token and the next question


def chat_template(name: str) -> ChatTemplate:
    """The template of that name, as in config.json; raises ValueError with the known names."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown chat template {name!r}; supported: {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def question_for(phrase: str, choice: int = 0) -> str:
    """Question number `choice` about a phrase; raises ValueError for an invalid phrase, see `clean_phrase`."""
    return QUESTIONS[choice % len(QUESTIONS)].format(phrase=clean_phrase(phrase))


def clean_phrase(phrase: str, longest: int = 500) -> str:
    """A phrase with normalised spaces; raises ValueError if it is empty, too long or contains control tokens.

    longest: maximum number of characters.
    """
    stripped = " ".join(phrase.split())
    if not stripped:
        raise ValueError('the phrase is empty; say what to segment, e.g. "blood vessel"')
    if len(stripped) > longest:
        raise ValueError(f"the phrase has {len(stripped)} characters; at most {longest} are accepted")
    reject_control_tokens(stripped)
    return stripped


def reject_control_tokens(text: str) -> None:
    """Raise ValueError if the text contains a control token, which the model would not treat as text."""
    found = _CONTROL_TOKENS.search(text)
    if found:
        raise ValueError(f"{text[:80]!r} contains {found.group(0)!r}, a control token of the model; remove it")


_CONTROL_TOKENS = re.compile(r"\[SEG\]|<image>|</?img>|<IMG_CONTEXT>|</?v?p>|<\|[^|]*\|>")
