"""Conversation -> input_ids and labels; raises instead of cutting a [SEG] off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vesselseg.dataset.batch import IGNORE_LABEL
from vesselseg.dataset.prompts import TURN_SEPARATOR, ChatTemplate, refuse_control_tokens
from vesselseg.errors import UserError

IMAGE_OPEN, IMAGE_CLOSE, IMAGE_TOKEN = "<img>", "</img>", "<IMG_CONTEXT>"


class ConversationTokens:
    """Turns rounds of question and answer about one image into token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        # <s> of InternLM2; Qwen2's tokenizer puts nothing before a text. Sa2VA trains and asks with what is there.
        self.opening = [number for number in self._ids("", whole=True)[:1] if number == tokenizer.bos_token_id]

    def encode(self, rounds: Sequence[tuple[str, str]], image_tokens: int, where: str = "") -> tuple[Tensor, Tensor]:
        """The image stands before the first question; labels cover the answers and their end token.

        rounds: (question, answer) pairs. image_tokens: placeholders for the image, tiles * tokens per tile.
        Returns input_ids and labels, both (tokens,) int64. Raises UserError naming `where` if it is too long: cutting
        it would take [SEG] away from its mask. Raises ValueError if a question holds a token of the model's own.
        """
        ids = list(self.opening)
        labels = [IGNORE_LABEL] * len(ids)
        for number, (question, answer) in enumerate(rounds):
            refuse_control_tokens(question)
            image = f"{IMAGE_OPEN}{IMAGE_TOKEN * image_tokens}{IMAGE_CLOSE}\n" if number == 0 else ""
            separator = TURN_SEPARATOR if number else ""
            asked = self._ids(f"{separator}{self.template.user}{image}{question}{self.template.assistant}")
            answered = self._ids(answer + self.template.end)
            ids += asked + answered
            labels += [IGNORE_LABEL] * len(asked) + answered
        if len(ids) > self.max_length:
            raise UserError(
                f"{where or 'conversation'}: {len(ids)} tokens ({image_tokens} of the image, {len(rounds)} rounds), "
                f"at most {self.max_length} fit; raise max_length or lower max_tiles"
            )
        return torch.tensor(ids), torch.tensor(labels)

    def _ids(self, text: str, whole: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=whole)["input_ids"]
