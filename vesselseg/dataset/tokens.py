"""Conversation -> input_ids and labels; raises instead of truncating, which would drop a [SEG]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vesselseg.dataset.batch import IGNORE_LABEL
from vesselseg.dataset.prompts import TURN_SEPARATOR, ChatTemplate, reject_control_tokens
from vesselseg.errors import UserError

IMAGE_OPEN, IMAGE_CLOSE, IMAGE_TOKEN = "<img>", "</img>", "<IMG_CONTEXT>"


class ConversationTokens:
    """Encodes rounds of question and answer about one image.

    tokenizer: with the image tokens and [SEG]. max_length: largest number of tokens of a conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        # <s> for InternLM2, nothing for Qwen2, whose tokenizer has no prefix; the same in training and prediction.
        self.opening = [number for number in self._ids("", whole=True)[:1] if number == tokenizer.bos_token_id]

    def encode(self, rounds: Sequence[tuple[str, str]], image_tokens: int, where: str = "") -> tuple[Tensor, Tensor]:
        """Encode a conversation: the image precedes the first question, labels cover answers and their end tokens.

        rounds: (question, answer) pairs. image_tokens: placeholders for the image, tiles * tokens per tile.
        where: name for error messages. Returns input_ids and labels, both (tokens,) int64. Raises UserError if the
        conversation is too long, ValueError if a question contains a control token.
        """
        ids = list(self.opening)
        labels = [IGNORE_LABEL] * len(ids)
        for number, (question, answer) in enumerate(rounds):
            reject_control_tokens(question)
            image = f"{IMAGE_OPEN}{IMAGE_TOKEN * image_tokens}{IMAGE_CLOSE}\n" if number == 0 else ""
            separator = TURN_SEPARATOR if number else ""
            question_ids = self._ids(f"{separator}{self.template.user}{image}{question}{self.template.assistant}")
            answer_ids = self._ids(answer + self.template.end)
            ids += question_ids + answer_ids
            labels += [IGNORE_LABEL] * len(question_ids) + answer_ids
        if len(ids) > self.max_length:
            raise UserError(
                f"{where or 'conversation'}: {len(ids)} tokens ({image_tokens} of the image, {len(rounds)} rounds), "
                f"at most {self.max_length} fit; increase max_length or reduce max_tiles"
            )
        return torch.tensor(ids), torch.tensor(labels)  # (tokens,), (tokens,)

    def _ids(self, text: str, whole: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=whole)["input_ids"]
