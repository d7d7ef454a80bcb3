"""The option --mask-values: what the user says about the values of masks; light to import, for the command line."""

from __future__ import annotations

from dataclasses import dataclass

MEANINGS = ("binary", "classes", "objects", "probability")


@dataclass(frozen=True)
class MaskValues:
    """The user's decision (--mask-values): how to read values, and which to ignore; None and (): by evidence."""

    meaning: str | None = None
    ignore: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> MaskValues:
        """`binary`, `classes`, `objects`, `probability`, `ignore=255`, or two parts with a comma between."""
        meaning, ignore = None, []
        for part in text.split(","):
            word = part.strip().lower()
            if word.startswith("ignore="):
                try:
                    ignore.append(float(word.removeprefix("ignore=")))
                except ValueError:
                    raise ValueError(f"{part.strip()}: expected a number, as in ignore=255") from None
            elif word in MEANINGS and meaning is None:
                meaning = word
            else:
                raise ValueError(
                    f"{text!r}: expected one of {', '.join(MEANINGS)}, or ignore=255, or classes,ignore=255"
                )
        return cls(meaning, tuple(ignore))

    def __bool__(self) -> bool:
        return self.meaning is not None or bool(self.ignore)

    def __str__(self) -> str:
        return ",".join([*([self.meaning] if self.meaning else []), *(f"ignore={value:g}" for value in self.ignore)])


BY_EVIDENCE = MaskValues()
