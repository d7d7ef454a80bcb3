"""What is wrong with a command line, in one line each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from cyclopts import CycloptsError
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from vesselseg.errors import UserError
from vesselseg.suggest import did_you_mean


def describe(error: CycloptsError) -> str:
    """The message of an error, with the help that lists what is accepted."""
    command = " ".join(["vesselseg", *(error.command_chain or ())])
    return f"{_what(error)}; see {command} --help"


def _what(error: CycloptsError) -> str:
    if isinstance(error.__cause__, UserError):
        return str(error.__cause__)
    if isinstance(error, CoercionError) and error.msg is not None and error.token is not None:
        name = error.token.keyword or (error.argument.name.lstrip("-").upper() if error.argument else "")
        return f"{name} {error.msg}"
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        names = [name for name in error.app or () if not name.startswith("-")]
        word = error.unused_tokens[0]
        return f"unknown command {word!r}{did_you_mean(word, names)}"
    if isinstance(error, UnknownOptionError):
        word = error.token.keyword or error.token.value
        known = chain.from_iterable(argument.names for argument in error.argument_collection if argument.parse)
        return f"unknown option {word}{did_you_mean(word, known)}"
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument {(error.unused_tokens or [''])[0]!r}"
    if type(error) is MissingArgumentError:
        return _missing(error)
    error.verbose = False
    return str(error).rstrip(".")


def _missing(error: MissingArgumentError) -> str:
    if error.argument is None:
        return "an argument is missing"
    if error.keyword or error.argument.tokens:
        return f"{error.keyword or error.argument.name} needs a value"
    positional = error.argument.index is not None
    name = error.argument.name.lstrip("-").upper() if positional else error.argument.name
    unknown = (word for word in error.unused_tokens or () if word.startswith("-"))
    mistyped = next(_mistyped(unknown, error.argument.names), "")
    return f"{name} is missing{mistyped}"


def _mistyped(words: Iterator[str], names: tuple[str, ...]) -> Iterator[str]:
    for word in words:
        if did_you_mean(word, names):
            yield f": {word} is no option{did_you_mean(word, names)}"
