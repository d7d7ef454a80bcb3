"""Greedy decoding of an answer, token by token; slower than teacher-forcing the known answer.

Used for chat, and to check that a model produces the answer that it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vesselseg.dataset.batch import IGNORE_LABEL
from vesselseg.dataset.tokens import ConversationTokens
from vesselseg.models.sa2va import Sa2VA


@dataclass(frozen=True)
class DecodedAnswer:
    """A decoded answer, without the end token."""

    ids: tuple[int, ...]
    prompts: Tensor  # ([SEG] tokens in the answer, 256)


def question_ids(tokens: ConversationTokens, question: str, image_tokens: int) -> Tensor:
    """(tokens,) int64: the conversation up to the start of the answer."""
    ids, labels = tokens.encode([(question, "")], image_tokens)
    return ids[labels == IGNORE_LABEL]


@torch.inference_mode()
def greedy_decode(
    model: Sa2VA,
    question: Tensor,
    tile_tokens: Tensor,
    end_id: int,
    max_new_tokens: int,
    forced_ids: Sequence[int] | None = None,
) -> DecodedAnswer:
    """Append the most likely token until the end token or max_new_tokens.

    question: (tokens,) int64, see `question_ids`. tile_tokens: (tiles, tokens per tile, hidden) of one image.
    forced_ids: tokens to append in place of the most likely ones, to compare or time this decoding.
    """
    decoder, head = model.language_model.model, model.language_model.get_output_embeddings()
    conversation = model.pack([question])
    state = decoder(inputs_embeds=model.embed(conversation, tile_tokens).unsqueeze(0), use_cache=True)
    ids: list[int] = []
    seg_states = [tile_tokens.new_zeros(0, tile_tokens.shape[-1])]  # hidden states (1, hidden) at [SEG]
    while len(ids) < (max_new_tokens if forced_ids is None else len(forced_ids)):
        predicted = model.new_tokens.logits(head, state.last_hidden_state[0, -1]).argmax()
        token = int(predicted) if forced_ids is None else forced_ids[len(ids)]
        if token == end_id:
            break
        ids.append(token)
        embedded = model.embed(model.pack([torch.tensor([token])]), tile_tokens[:0])  # (1, hidden)
        state = decoder(inputs_embeds=embedded.unsqueeze(0), past_key_values=state.past_key_values, use_cache=True)
        if token == model.new_tokens.seg_id:
            seg_states.append(state.last_hidden_state[0])
    return DecodedAnswer(tuple(ids), model.seg_projector(torch.cat(seg_states)))
