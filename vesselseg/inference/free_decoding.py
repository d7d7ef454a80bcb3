"""Free decoding: the answer word by word, as the language model likes it best. Slower than a given answer.

For chat, and to check that a model says what it was trained to say.
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
class Spoken:
    """ids: what was said, without the token that ends an answer. prompts: (times that [SEG] was said, 256)."""

    ids: tuple[int, ...]
    prompts: Tensor


def question_ids(tokens: ConversationTokens, question: str, image_tokens: int) -> Tensor:
    """(tokens,) int64: the conversation up to where the answer begins."""
    ids, labels = tokens.encode([(question, "")], image_tokens)
    return ids[labels == IGNORE_LABEL]


@torch.inference_mode()
def decode_freely(
    model: Sa2VA, question: Tensor, tile_tokens: Tensor, end_id: int, longest: int, said: Sequence[int] | None = None
) -> Spoken:
    """Say the likeliest word again and again until the end token, or so many tokens.

    question: (tokens,) int64, see `question_ids`. tile_tokens: (tiles, tokens per tile, hidden) of one image. said:
    words to say instead of the likeliest ones, to compare or time this way of reading an answer.
    """
    decoder, head = model.language_model.model, model.language_model.get_output_embeddings()
    conversation = model.pack([question])
    state = decoder(inputs_embeds=model.embed(conversation, tile_tokens).unsqueeze(0), use_cache=True)
    ids: list[int] = []
    vectors = [tile_tokens.new_zeros(0, tile_tokens.shape[-1])]
    while len(ids) < (longest if said is None else len(said)):
        likeliest = model.new_tokens.logits(head, state.last_hidden_state[0, -1]).argmax()
        word = int(likeliest) if said is None else said[len(ids)]
        if word == end_id:
            break
        ids.append(word)
        embedded = model.embed(model.pack([torch.tensor([word])]), tile_tokens[:0])
        state = decoder(inputs_embeds=embedded.unsqueeze(0), past_key_values=state.past_key_values, use_cache=True)
        if word == model.new_tokens.seg_id:
            vectors.append(state.last_hidden_state[0])
    return Spoken(tuple(ids), model.seg_projector(torch.cat(vectors)))
