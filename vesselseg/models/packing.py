"""Conversations without padding: one row of tokens, and where in it everything stands.

All places are found on the CPU, before anything moves to a GPU: finding them there would make the CPU wait for the GPU
several times in every forward pass.
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
    """Conversations one behind the other.

    lengths: tokens of each conversation. branches: None, or per conversation how many tokens all its branches share and
    how many each of them has (see `join_branches`). text_ids: (text tokens,) int64, all tokens but image placeholders,
    on the device; host_text_ids: the same in main memory. order: (tokens,) int64, for each place its row in text tokens
    followed by image tokens. seg_places: (objects,) int64, where [SEG] is the input token. answer_places: (answer
    tokens,) int64, where the next token has a label; answer_labels: (answer tokens,) int64, that label.
    """

    lengths: tuple[int, ...]
    text_ids: Tensor
    host_text_ids: Tensor
    order: Tensor
    seg_places: Tensor
    answer_places: Tensor
    answer_labels: Tensor
    branches: tuple[tuple[int, ...], ...] | None = None

    def to(self, device: torch.device | str) -> Packed:
        """The same on a device; the text's tokens stay in main memory as well."""
        names = [field.name for field in fields(self) if field.name not in _ON_HOST]
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def pack(rows: Sequence[Tensor], labels: Sequence[Tensor] | None, image_token_id: int, seg_id: int) -> Packed:
    """rows: (tokens,) int64 each, in main memory, without padding. labels: like rows, IGNORE_LABEL where none is."""
    ids = torch.cat(list(rows))
    is_image = ids == image_token_id
    text = int((~is_image).sum())
    order = torch.where(is_image, text + is_image.cumsum(0) - 1, (~is_image).cumsum(0) - 1)
    wanted = torch.full_like(ids, IGNORE_LABEL)
    if labels is not None:
        # A token is predicted at the place before it, and never from another conversation.
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
    """Conversations that begin alike -> one row: the beginning once, behind it what follows in each of them.

    conversations: (tokens,) int64 each. stop: a token id, [SEG], that must not be shared, since each needs its own.
    Returns the row and its `branches`: tokens of the beginning, then of what follows it in each conversation. With the
    mask and positions of `read_padded` every token sees what it sees in a conversation of its own.
    """
    if len(conversations) == 1:
        return conversations[0], (0, len(conversations[0]))
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
    """Hidden states through transformers' own forward pass, which wants rows of equal length: any decoder, any adapter.

    embeddings: (tokens, hidden), conversations of these lengths. Returns (tokens, hidden), after the last norm.
    """
    rows = pad_sequence(embeddings.split(list(lengths)), batch_first=True)
    if branches is None:
        present = torch.arange(rows.shape[1]) < torch.tensor(lengths).unsqueeze(1)
        how: dict[str, Tensor] = {"attention_mask": present.to(rows.device, non_blocking=True)}
    else:
        how = _see_branches(branches, rows)
    # One pass over question and answer: nothing will read keys and values again.
    hidden = decoder(inputs_embeds=rows, use_cache=False, **how).last_hidden_state
    return torch.cat([row[:length] for row, length in zip(hidden, lengths)])


def _see_branches(branches: tuple[tuple[int, ...], ...], rows: Tensor) -> dict[str, Tensor]:
    """Attention mask (rows, 1, longest, longest), added to scores, and positions (rows, longest)."""
    longest = rows.shape[1]
    branch = torch.full((len(branches), longest), -1)  # 0: shared, -1: padding, which sees itself
    positions = torch.arange(longest).repeat(len(branches), 1)
    for row, (shared, *following) in enumerate(branches):
        place = shared
        branch[row, :shared] = 0
        for number, length in enumerate(following, 1):
            branch[row, place : place + length] = number
            positions[row, place : place + length] = torch.arange(shared, shared + length)
            place += length
    branch, positions = branch.to(rows.device, non_blocking=True), positions.to(rows.device, non_blocking=True)
    mine, other = branch.unsqueeze(2), branch.unsqueeze(1)
    earlier = torch.ones(longest, longest, dtype=torch.bool, device=rows.device).tril()
    sees = earlier & ((mine == other) | (other == 0)) & (mine >= 0)
    sees = sees | torch.eye(longest, dtype=torch.bool, device=rows.device)
    mask = torch.zeros(sees.shape, dtype=rows.dtype, device=rows.device)
    mask = mask.masked_fill(~sees, torch.finfo(rows.dtype).min)
    return {"attention_mask": mask.unsqueeze(1), "position_ids": positions}
