"""Sentences that the project makes itself, for the quickstart and the tests: nothing is downloaded.

A grammar of opinions with negation, contrast, intensity and doubt. The label follows from the structure (a `not` turns
the opinion, what stands after `but` counts more than what stands before it), so a bag of words does not solve it
and smaller models do worse.
"""

import random
from dataclasses import dataclass

_SUBJECTS = [
    "film",
    "story",
    "plot",
    "cast",
    "script",
    "music",
    "scene",
    "ending",
    "hero",
    "dialogue",
    "camera",
    "pace",
    "comedy",
    "drama",
    "song",
    "book",
]
_GOOD = [
    "good",
    "great",
    "lovely",
    "clever",
    "fresh",
    "warm",
    "funny",
    "bright",
    "honest",
    "moving",
    "rich",
    "sharp",
    "elegant",
    "brave",
    "tender",
    "gripping",
]
_BAD = [
    "bad",
    "poor",
    "dull",
    "silly",
    "stale",
    "cold",
    "boring",
    "flat",
    "fake",
    "weak",
    "clumsy",
    "slow",
    "ugly",
    "timid",
    "hollow",
    "tedious",
]
_STRONG = ["very", "really", "truly", "deeply"]
_MILD = ["somewhat", "slightly", "rather", "fairly"]
_FRAMES = (
    "the {s} is {o}",
    "this {s} seems {o}",
    "its {s} was {o}",
    "i found the {s} {o}",
    "we thought the {s} was {o}",
)
_DOUBT = ("nobody would say that", "it is wrong that", "i doubt that")
_LABELS = ("negative", "positive")


@dataclass(frozen=True)
class _Clause:
    text: str
    value: float


def statements(count: int, seed: int) -> list[dict[str, str]]:
    """Rows with `sentence` and `label` (`negative` or `positive`), no sentence twice.

    Args:
        count: how many rows.
        seed: of the generator; the same seed gives the same rows.
    """
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        sentence = _sentence(draw)
        if sentence.value != 0:
            rows[sentence.text] = _LABELS[sentence.value > 0]
    return [{"sentence": sentence, "label": label} for sentence, label in rows.items()]


def _sentence(draw: random.Random) -> _Clause:
    first = _clause(draw)
    kind = draw.random()
    if kind < 0.35:
        return first
    second = _clause(draw)
    if kind < 0.6:
        return _Clause(f"{first.text} but {second.text}", first.value * 0.5 + second.value)
    if kind < 0.85:
        return _Clause(f"although {first.text} , {second.text}", first.value * 0.5 + second.value)
    return _Clause(f"{first.text} and {second.text}", first.value + second.value)


def _clause(draw: random.Random) -> _Clause:
    good = draw.random() < 0.5
    word, value = draw.choice(_GOOD if good else _BAD), 1.0 if good else -1.0
    intensity = draw.random()
    if intensity < 0.3:
        word, value = f"{draw.choice(_STRONG)} {word}", value * 1.8
    elif intensity < 0.5:
        word, value = f"{draw.choice(_MILD)} {word}", value * 0.6
    if draw.random() < 0.3:
        word, value = f"not {word}", -value
    text = draw.choice(_FRAMES).format(s=draw.choice(_SUBJECTS), o=word)
    if draw.random() < 0.15:
        text, value = f"{draw.choice(_DOUBT)} {text}", -value
    return _Clause(text, value)
