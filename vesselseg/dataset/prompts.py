"""Chat templates, questions and answers: the only place where their words are written."""

from __future__ import annotations

import re
from dataclasses import dataclass

SEG_TOKEN = "[SEG]"
IMAGE_PLACEHOLDER = "<image>"
ANSWER = f"Sure, it is {SEG_TOKEN}."
DEFAULT_PHRASE = "blood vessel"  # where nobody says what to segment

# The first is asked when predicting; training draws from all of them.
QUESTIONS = (
    "Please segment {phrase} in this image.",
    "Please segment the {phrase}.",
    "Can you segment the {phrase} in this image?",
    "Where is the {phrase} in this image? Please answer with a segmentation mask.",
    "Show me the {phrase} as a segmentation mask.",
)


@dataclass(frozen=True)
class ChatTemplate:
    """Text around a question and behind an answer, and the end-of-turn token that the answer must learn."""

    user: str
    assistant: str
    end: str


# No system turn: published Sa2VA trains and answers without one. InternVL's Qwen2 and InternLM2 models share the words.
_CHATML = ChatTemplate("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
TEMPLATES = {"qwen_chat": _CHATML, "internlm2_chat": _CHATML, "internvl2_5": _CHATML}
TURN_SEPARATOR = "\n"  # between one answer's end token and the next question


def chat_template(name: str) -> ChatTemplate:
    """The template of that name, as in config.json; raises ValueError with the known names."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown chat template {name!r}; supported: {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def question_for(phrase: str, choice: int = 0) -> str:
    """The question number `choice` about a phrase, which must not contain the model's own tokens."""
    return QUESTIONS[choice % len(QUESTIONS)].format(phrase=clean_phrase(phrase))


def clean_phrase(phrase: str, longest: int = 500) -> str:
    """A phrase without surrounding blanks; raises ValueError where it is empty, too long or holds control tokens."""
    stripped = " ".join(phrase.split())
    if not stripped:
        raise ValueError('the phrase is empty; say what to segment, e.g. "blood vessel"')
    if len(stripped) > longest:
        raise ValueError(f"the phrase has {len(stripped)} characters; at most {longest} are accepted")
    refuse_control_tokens(stripped)
    return stripped


def refuse_control_tokens(text: str) -> None:
    """Raise ValueError where a text holds a token that the model would obey instead of read."""
    found = _CONTROL_TOKENS.search(text)
    if found:
        raise ValueError(f"{text[:80]!r} contains {found.group(0)!r}, a token of the model's own; leave it out")


_CONTROL_TOKENS = re.compile(r"\[SEG\]|<image>|</?img>|<IMG_CONTEXT>|</?v?p>|<\|[^|]*\|>")
