"""Conversations packed without padding into one row of tokens, with the positions of everything in it.

Positions are found on the CPU, before anything moves to a GPU: finding them on the GPU (`nonzero`) would make the CPU
wait for it several times per forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vesselseg.dataset.batch import IGNORE_LABEL

_ON_HOST = ("lengths", "branches", "host_text_ids")


@dataclass(frozen=True)
class Packed:
    """Conversations, concatenated."""

    lengths: tuple[int, ...]
    """tokens of each conversation"""
    text_ids: Tensor
    """(text tokens,) int64, all tokens but image placeholders, on the device"""
    host_text_ids: Tensor
    """the same in main memory"""
    order: Tensor
    """(tokens,) int64, for each position its row in the concatenation of text tokens and image tokens"""
    seg_places: Tensor
    """(objects,) int64, positions of [SEG] in the input"""
    answer_places: Tensor
    """(answer tokens,) int64, positions whose next token has a label"""
    answer_labels: Tensor
    """(answer tokens,) int64, these labels"""
    branches: tuple[tuple[int, ...], ...] | None = None
    """None, or per conversation the tokens that all its branches share and those of each branch (`join_branches`)"""

    def to(self, device: torch.device | str) -> Packed:
        """The same on a device; the text's tokens stay in main memory as well."""
        names = [field.name for field in fields(self) if field.name not in _ON_HOST]
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def pack(rows: Sequence[Tensor], labels: Sequence[Tensor] | None, image_token_id: int, seg_id: int) -> Packed:
    """Pack conversations.

    rows: (tokens,) int64 each, in main memory, without padding. labels: like rows, IGNORE_LABEL where there is none.
    """
    ids = torch.cat(list(rows))
    is_image = ids == image_token_id
    text = int((~is_image).sum())
    # The n-th text token is row n, the n-th image token row (number of text tokens + n).
    order = torch.where(is_image, text + is_image.cumsum(0) - 1, (~is_image).cumsum(0) - 1)
    wanted = torch.full_like(ids, IGNORE_LABEL)
    if labels is not None:
        # A token is predicted at the position before it, and never from another conversation.
        wanted = torch.cat([torch.cat([row[1:], row.new_full((1,), IGNORE_LABEL)]) for row in labels])
    answer_places = (wanted != IGNORE_LABEL).nonzero().squeeze(1)
    return Packed(
        lengths=tuple(len(row) for row in rows),
        text_ids=ids[~is_image],
        host_text_ids=ids[~is_image],
        order=order,
        seg_places=(ids == seg_id).nonzero().squeeze(1),
        answer_places=answer_places,
        answer_labels=wanted[answer_places],
    )


def join_branches(conversations: Sequence[Tensor], stop: int) -> tuple[Tensor, tuple[int, ...]]:
    """Join conversations with a common prefix into one row: the prefix once, then the rest of each conversation.

    conversations: (tokens,) int64 each. stop: a token id, [SEG], that must not be shared: each conversation needs its
    own hidden state there. Returns the row and its `branches`: the number of tokens of the prefix, then of each rest.
    With the mask and positions of `read_padded` every token attends to the same tokens as in a separate conversation.
    """
    if len(conversations) == 1:
        return conversations[0], (0, len(conversations[0]))
    # A cumulative product of 0 and 1 is 1 up to the first difference.
    first, shortest = conversations[0], min(map(len, conversations))
    same = (first[:shortest] != stop).cumprod(0)
    for other in conversations[1:]:
        same = same * (first[:shortest] == other[:shortest])
    shared = int(same.cumprod(0).sum())
    rest = [row[shared:] for row in conversations]
    return torch.cat([first[:shared], *rest]), (shared, *map(len, rest))


def read_padded(
    decoder: nn.Module,
    embeddings: Tensor,
    lengths: tuple[int, ...],
    branches: tuple[tuple[int, ...], ...] | None = None,
) -> Tensor:
    """Hidden states from transformers' own forward pass on padded rows, which works for any decoder and adapter.

    embeddings: (tokens, hidden), conversations of these lengths. Returns (tokens, hidden), after the last norm.
    """
    rows = pad_sequence(embeddings.split(list(lengths)), batch_first=True)
    if branches is None:
        present = torch.arange(rows.shape[1]) < torch.tensor(lengths).unsqueeze(1)
        how: dict[str, Tensor] = {"attention_mask": present.to(rows.device, non_blocking=True)}
    else:
        how = _see_branches(branches, rows)
    # One pass over question and answer: a cache of keys and values would not be read.
    hidden = decoder(inputs_embeds=rows, use_cache=False, **how).last_hidden_state
    return torch.cat([row[:length] for row, length in zip(hidden, lengths)])


def _see_branches(branches: tuple[tuple[int, ...], ...], rows: Tensor) -> dict[str, Tensor]:
    """Attention mask (rows, 1, longest, longest), added to the scores, and positions (rows, longest)."""
    longest = rows.shape[1]
    branch = torch.full((len(branches), longest), -1)  # 0: shared prefix, -1: padding
    positions = torch.arange(longest).repeat(len(branches), 1)
    for row, (shared, *following) in enumerate(branches):
        place = shared
        branch[row, :shared] = 0
        for number, length in enumerate(following, 1):
            branch[row, place : place + length] = number
            # Every branch continues from the end of the prefix, as if the others were not there.
            positions[row, place : place + length] = torch.arange(shared, shared + length)
            place += length
    branch, positions = branch.to(rows.device, non_blocking=True), positions.to(rows.device, non_blocking=True)
    mine, other = branch.unsqueeze(2), branch.unsqueeze(1)
    earlier = torch.ones(longest, longest, dtype=torch.bool, device=rows.device).tril()
    sees = earlier & ((mine == other) | (other == 0)) & (mine >= 0)
    # Padding attends to itself: a row of the mask without any entry would give NaN.
    sees = sees | torch.eye(longest, dtype=torch.bool, device=rows.device)
    mask = torch.zeros(sees.shape, dtype=rows.dtype, device=rows.device)
    mask = mask.masked_fill(~sees, torch.finfo(rows.dtype).min)
    return {"attention_mask": mask.unsqueeze(1), "position_ids": positions}
