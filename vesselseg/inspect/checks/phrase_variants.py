"""Phrases that are probably variants of one another: other spellings, and misspellings by one letter."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from rapidfuzz.distance import OSA

from vesselseg.dataset.manifest import Record
from vesselseg.imaging.regions import Region

CLEARLY_RARER = 5  # minimum ratio of frequencies for an automatic correction of a misspelling
_LEAST_LETTERS = 4  # of a word in which one letter may differ: "LAD" and "RAD" are different


@dataclass(frozen=True)
class PhraseVariants:
    """Phrases for one thing.

    code: "label_variant" or "label_typo". phrases: the most frequent first. is_certain: whether --fix may replace all
    by the first.
    """

    code: str
    phrases: tuple[str, ...]
    is_certain: bool


def find_variants(counts: Mapping[str, int]) -> list[PhraseVariants]:
    """Groups of phrases that differ in case, spaces, hyphens or plural, then those that differ by one letter.

    counts: number of images per phrase.
    """
    spellings = defaultdict(list)
    for phrase in sorted(counts, key=lambda name: (-counts[name], name)):
        spellings[normal_form(phrase)].append(phrase)
    variants = [PhraseVariants("label_variant", tuple(same), True) for same in spellings.values() if len(same) > 1]
    totals = {form: sum(counts[phrase] for phrase in same) for form, same in spellings.items()}
    return variants + list(_misspelt(spellings, totals))


def normal_form(phrase: str) -> str:
    """Lower case, hyphens and underscores replaced by single spaces, words in the singular."""
    return " ".join(_singular(word) for word in re.sub(r"[\s_-]+", " ", phrase.casefold()).split())


def replacements(same: list[PhraseVariants]) -> dict[str, str]:
    """Phrase -> its replacement, for all certain variants."""
    names: dict[str, str] = {}
    for one in same:
        names |= {phrase: one.phrases[0] for phrase in one.phrases[1:] if one.is_certain}
    return {phrase: _end_of(name, names) for phrase, name in names.items()}


def rename_phrases(record: Record, names: Mapping[str, str]) -> Record:
    """The record with replaced phrases; objects that get the same phrase are merged.

    A record that already had several objects of one phrase was prepared with one object per shape: none are merged.
    """
    phrases = tuple(names.get(phrase, phrase) for phrase in record.phrases)
    if phrases == record.phrases:
        return record
    if len(set(record.phrases)) < len(record.phrases):
        return replace(record, phrases=phrases)
    kept = tuple(dict.fromkeys(phrases))

    def united(objects: tuple[tuple[Region, ...], ...]) -> tuple[tuple[Region, ...], ...]:
        return tuple(tuple(r for p, regions in zip(phrases, objects) if p == name for r in regions) for name in kept)

    observers = {name: united(drawn) for name, drawn in record.observers.items()}
    return replace(record, phrases=kept, regions=united(record.regions), observers=observers)


def _misspelt(spellings: Mapping[str, list[str]], totals: Mapping[str, int]) -> Iterator[PhraseVariants]:
    for pair in combinations(spellings, 2):
        often, rare = sorted(pair, key=lambda form: (-totals[form], form))
        if _one_letter_apart(often, rare):
            is_certain = totals[often] >= CLEARLY_RARER * totals[rare]
            yield PhraseVariants("label_typo", (spellings[often][0], *spellings[rare]), is_certain)


def _one_letter_apart(one: str, other: str) -> bool:
    """Whether exactly one word differs, by one letter; digits must be equal."""
    words, others = one.split(), other.split()
    if len(words) != len(others):
        return OSA.distance(one.replace(" ", ""), other.replace(" ", "")) == 0
    differing = [(a, b) for a, b in zip(words, others) if a != b]
    if len(differing) != 1:
        return False
    a, b = differing[0]
    if min(len(a), len(b)) < _LEAST_LETTERS or re.findall(r"\d", a) != re.findall(r"\d", b):
        return False
    return OSA.distance(a, b, score_cutoff=1) == 1


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _end_of(name: str, names: Mapping[str, str]) -> str:
    """Follow replacements to the end; frequency increases with each step, so there is no cycle."""
    while name in names:
        name = names[name]
    return name
