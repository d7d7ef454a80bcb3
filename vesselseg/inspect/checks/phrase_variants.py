"""Phrases that are most likely meant to be the same: spelling variants, and misspellings by one letter."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from rapidfuzz.distance import OSA

from vesselseg.dataset.manifest import Record
from vesselseg.imaging.regions import Region

CLEARLY_RARER = 5  # how many times as frequent the right spelling must be for a misspelling to be corrected
_LEAST_LETTERS = 4  # of a word in which one letter may differ: "LAD" and "RAD" are two things


@dataclass(frozen=True)
class PhraseVariants:
    """phrases: most frequent first. sure: whether `--fix` may take the first for all."""

    code: str
    phrases: tuple[str, ...]
    sure: bool


def find_variants(counts: Mapping[str, int]) -> list[PhraseVariants]:
    """Groups of phrases that differ in case, spaces, hyphens or plural, then pairs that differ by one letter.

    counts: how many images have each phrase.
    """
    spellings = defaultdict(list)
    for phrase in sorted(counts, key=lambda name: (-counts[name], name)):
        spellings[normal_form(phrase)].append(phrase)
    variants = [PhraseVariants("label_variant", tuple(same), True) for same in spellings.values() if len(same) > 1]
    totals = {form: sum(counts[phrase] for phrase in same) for form, same in spellings.items()}
    return variants + list(_misspelt(spellings, totals))


def normal_form(phrase: str) -> str:
    """Lower case, single spaces in place of hyphens and underscores, words in the singular."""
    return " ".join(_singular(word) for word in re.sub(r"[\s_-]+", " ", phrase.casefold()).split())


def renamed(same: list[PhraseVariants]) -> dict[str, str]:
    """Phrase -> the phrase that takes its place."""
    names: dict[str, str] = {}
    for one in same:
        names |= {phrase: one.phrases[0] for phrase in one.phrases[1:] if one.sure}
    return {phrase: _end_of(name, names) for phrase, name in names.items()}


def rename(record: Record, names: Mapping[str, str]) -> Record:
    """The record with other phrases. Objects that come to have one phrase are one, unless the record had such before.

    A record with several objects of one phrase was prepared shape by shape, and stays so.
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
            sure = totals[often] >= CLEARLY_RARER * totals[rare]
            yield PhraseVariants("label_typo", (spellings[often][0], *spellings[rare]), sure)


def _one_letter_apart(one: str, other: str) -> bool:
    """Whether the words are the same but for one letter in one of them; a digit is never a slip."""
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
    """A misspelling of a variant ends at the commonest spelling; the steps get more frequent, so they end."""
    while name in names:
        name = names[name]
    return name
