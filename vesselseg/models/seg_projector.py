"""Hidden state of the language model at [SEG] -> SAM2 prompt vector."""

from __future__ import annotations

from torch import Tensor, nn

from vesselseg.models.sam2_grounding import PROMPT_DIM


class SegProjector(nn.Module):
    """Linear, ReLU, Linear (Sa2VA's ``text_hidden_fcs``, whose dropout of 0 is omitted)."""

    def __init__(self, text_hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(text_hidden, text_hidden)
        self.linear_2 = nn.Linear(text_hidden, PROMPT_DIM)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (objects, text_hidden). Returns (objects, 256)."""
        return self.linear_2(nn.functional.relu(self.linear_1(hidden)))
