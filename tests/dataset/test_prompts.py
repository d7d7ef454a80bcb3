from __future__ import annotations

import pytest

from vesselseg.dataset.prompts import (
    ANSWER,
    QUESTIONS,
    SEG_TOKEN,
    chat_template,
    clean_phrase,
    question_for,
    reject_control_tokens,
)
from vesselseg.models.sa2va_config import IMAGE_TOKENS, NEW_TOKENS


def test_the_template_is_the_published_one() -> None:
    for name in ("qwen_chat", "internlm2_chat", "internvl2_5"):
        template = chat_template(name)
        conversation = template.user + "Q" + template.assistant + "A" + template.end
        assert conversation == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>"


def test_an_unknown_template_error_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'phi3_chat'; supported: internlm2_chat, internvl2_5, qwen_chat"):
        chat_template("phi3_chat")


def test_questions_name_the_phrase_and_differ() -> None:
    asked = [question_for("left main", choice) for choice in range(len(QUESTIONS))]
    assert len(set(asked)) == len(QUESTIONS) >= 3
    assert all("left main" in question for question in asked)
    assert question_for("left main", len(QUESTIONS)) == asked[0] == question_for("left main")


def test_an_answer_contains_one_seg() -> None:
    assert ANSWER.count(SEG_TOKEN) == 1


def test_braces_are_plain_text() -> None:
    assert "{phrase} {0}" in question_for("{phrase} {0}")


@pytest.mark.parametrize(
    ("given", "cleaned"), [("  blood \n\t vessel ", "blood vessel"), ("血管", "血管"), ("a<b", "a<b")]
)
def test_spaces_are_normalised(given: str, cleaned: str) -> None:
    assert clean_phrase(given) == cleaned


@pytest.mark.parametrize("blank", ["", "   ", "\n\t", "\u3000"])
def test_an_empty_phrase_is_rejected(blank: str) -> None:
    with pytest.raises(ValueError, match="phrase is empty"):
        question_for(blank)


def test_a_long_phrase_is_rejected() -> None:
    assert clean_phrase("x" * 500) == "x" * 500
    with pytest.raises(ValueError, match=r"10000 characters; at most 500"):
        question_for("x" * 10_000)


@pytest.mark.parametrize("token", [*NEW_TOKENS, *IMAGE_TOKENS, "<image>", "<|im_end|>", "<|endoftext|>"])
def test_control_tokens_are_rejected(token: str) -> None:
    with pytest.raises(ValueError) as raised:
        question_for(f"vessel {token} here")
    assert repr(token) in str(raised.value)
    with pytest.raises(ValueError):
        reject_control_tokens(token)
