from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from vesselseg.dataset.batch import IGNORE_LABEL
from vesselseg.dataset.prompts import ANSWER, QUESTIONS, chat_template, question_for
from vesselseg.dataset.tokens import ConversationTokens
from vesselseg.errors import UserError
from vesselseg.models.sa2va_config import NEW_TOKENS
from vesselseg.models.tiny_base import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    made = tiny_tokenizer()
    made.add_tokens(list(NEW_TOKENS), special_tokens=True)
    return made


@pytest.fixture(scope="module")
def tokens(tokenizer: PreTrainedTokenizerBase) -> ConversationTokens:
    return ConversationTokens(tokenizer, chat_template("internvl2_5"), max_length=400)


def rounds(*phrases: str) -> list[tuple[str, str]]:
    return [(question_for(phrase, number), ANSWER) for number, phrase in enumerate(phrases)]


def test_one_round_word_by_word(tokens: ConversationTokens, tokenizer: PreTrainedTokenizerBase) -> None:
    ids, _ = tokens.encode([("Where is it?", ANSWER)], image_tokens=3)
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\nWhere is it?<|im_end|>\n"
        "<|im_start|>assistant\nSure, it is [SEG].<|im_end|>"
    )
    assert ids.dtype == torch.int64


def test_several_rounds_have_one_image_and_one_seg_each(
    tokens: ConversationTokens, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = rounds("vessel", "catheter", "left")
    ids, _ = tokens.encode(asked, image_tokens=5)
    text = tokenizer.decode(ids)
    assert int((ids == tokenizer.convert_tokens_to_ids("[SEG]")).sum()) == 3
    assert text.count("<IMG_CONTEXT>") == 5 and text.count("<img>") == 1
    assert text.count("<|im_end|>\n<|im_start|>user\n") == 2  # one newline between turns
    # Every question is between the previous [SEG] and its own.
    pieces = text.split("[SEG]")
    assert all(question in piece for (question, _), piece in zip(asked, pieces))


def test_labels_cover_only_answers_and_their_end_tokens(
    tokens: ConversationTokens, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids, labels = tokens.encode(rounds("vessel", "catheter"), image_tokens=4)
    labelled = labels != IGNORE_LABEL
    assert torch.equal(labels[labelled], ids[labelled])
    assert tokenizer.decode(ids[labelled]) == "Sure, it is [SEG].<|im_end|>" * 2
    starts = (labelled[1:] & ~labelled[:-1]).nonzero().flatten() + 1
    for start in starts:
        assert tokenizer.decode(ids[:start]).endswith("<|im_start|>assistant\n")


def test_the_ids_of_an_answer_do_not_depend_on_the_question(tokens: ConversationTokens) -> None:
    """The predictor appends the same tokens to a question that training used."""
    answers = set()
    for phrase in ("vessel", "catheter 3", "血管", "x" * 100):
        for choice in range(len(QUESTIONS)):
            _, labels = tokens.encode([(question_for(phrase, choice), ANSWER)], image_tokens=2)
            answers.add(tuple(labels[labels != IGNORE_LABEL].tolist()))
    several = tokens.encode(rounds("a", "b", "c"), 2)[1]
    answers |= {tuple(part.tolist()) for part in several[several != IGNORE_LABEL].chunk(3)}
    assert len(answers) == 1


def test_conversations_are_never_truncated(tokenizer: PreTrainedTokenizerBase) -> None:
    template = chat_template("internvl2_5")
    length = len(ConversationTokens(tokenizer, template, 10**6).encode(rounds("vessel", "left"), 20)[0])
    ids, _ = ConversationTokens(tokenizer, template, length).encode(rounds("vessel", "left"), 20)
    assert len(ids) == length
    with pytest.raises(UserError) as raised:
        ConversationTokens(tokenizer, template, length - 1).encode(rounds("vessel", "left"), 20, where="clip/a.png")
    message = str(raised.value)
    for part in (
        "clip/a.png",
        f"{length} tokens",
        "20 of the image",
        "2 rounds",
        f"at most {length - 1}",
        "max_length",
    ):
        assert part in message


@pytest.mark.parametrize("token", ["[SEG]", "<IMG_CONTEXT>", "<img>", "<|im_end|>"])
def test_a_question_cannot_contain_control_tokens(tokens: ConversationTokens, token: str) -> None:
    with pytest.raises(ValueError, match="a control token of the model"):
        tokens.encode([(f"Where is {token}?", ANSWER)], image_tokens=2)
