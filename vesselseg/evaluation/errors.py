"""The error of predictions, data or arguments that cannot be evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from vesselseg.errors import UserError

_SHOWN = 20


class EvaluationError(UserError):
    """Predictions, data or arguments that cannot be evaluated; the message lists every problem and what to do."""


def problem_list(headline: str, problems: Sequence[str], advice: str) -> str:
    """One message for many problems: headline, their number, the first 20 of them, and the advice."""
    lines = [f"{headline}: {len(problems)}", *(f"  {problem}" for problem in problems[:_SHOWN])]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    return "\n".join([*lines, advice])
