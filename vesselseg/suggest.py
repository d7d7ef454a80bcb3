"""Suggestions for misspelled names, worded once for configs, the command line and label maps."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SIMILARITY = 0.6  # of difflib, 0 to 1: below it a name is not worth suggesting


def close_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that is spelled most like `name`, None where none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=SIMILARITY)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message, "; did you mean 'x'?", empty where no known name is close."""
    close = close_name(name, known)
    return suggestion([] if close is None else [close])


def suggestion(names: Iterable[str]) -> str:
    """The same for names that are already chosen: "; did you mean 'a' or 'b'?"."""
    quoted = [repr(name) for name in names]
    return f"; did you mean {' or '.join(quoted)}?" if quoted else ""


def nearest_paths(path: str, known: Iterable[str]) -> list[str]:
    """Up to two known paths that may be meant: the same last name elsewhere, or a similar spelling."""
    known = sorted(set(known) - {path})
    last = path.rsplit(".", 1)[-1]
    same = [name for name in known if name.rsplit(".", 1)[-1] == last]
    close = difflib.get_close_matches(path, known, n=1, cutoff=SIMILARITY)
    by_last = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    similar = [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1, cutoff=0.75)]
    return list(dict.fromkeys(same + close + similar))[:2]
