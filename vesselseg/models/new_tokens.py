"""Embedding and head rows of the new tokens, beside the frozen tables.

Resizing the tables of an 8B model copies 1.09 G parameters, and training them whole doubles what an optimizer must
hold, to learn five rows. Here the tables stay as they are and the five rows are parameters of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vesselseg.models.sa2va_config import NEW_TOKENS


class NewTokens(nn.Module):
    """Rows for consecutive token ids from `start` on; the tables may end before `start` or hold stale rows there."""

    def __init__(self, start: int, hidden_size: int) -> None:
        super().__init__()
        self.start = start
        self.count = len(NEW_TOKENS)
        self.embedding = nn.Parameter(torch.zeros(self.count, hidden_size))
        self.head = nn.Parameter(torch.zeros(self.count, hidden_size))

    @property
    def seg_id(self) -> int:
        """Id of [SEG], the first new token."""
        return self.start

    def embed(self, table: nn.Embedding, input_ids: Tensor) -> Tensor:
        """input_ids: (...) int64. Returns (..., hidden): new rows for new ids, the table's rows for all others."""
        new = (input_ids >= self.start) & (input_ids < self.start + self.count)
        frozen = table(input_ids.masked_fill(new, 0))
        rows = self.embedding[(input_ids - self.start).clamp(0, self.count - 1)]
        return torch.where(new.unsqueeze(-1), rows.to(frozen.dtype), frozen)

    def logits(self, head: nn.Linear, hidden: Tensor) -> Tensor:
        """hidden: (..., hidden). Returns (..., vocabulary), the new ids' columns computed from the new rows."""
        frozen = head(hidden)
        new = hidden @ self.head.to(hidden.dtype).T
        return torch.cat([frozen[..., : self.start], new, frozen[..., self.start + self.count :]], dim=-1)
