"""What part of a batch's loss a part of the batch makes up."""

from collections.abc import Callable

import torch
from torch import Tensor

from compressor.losses.relations import Normalization
from compressor.settings import ObjectiveSettings


def shares(settings: ObjectiveSettings, whole: Tensor, part: Tensor) -> dict[str, float]:
    """For every term, the number that its mean over a part is divided by, over that of the whole batch.

    Losses are means: over examples, words, pairs or triples. A batch that several processes share gives the losses and
    gradients of one process if each multiplies its means by its share. Numbers come from the masks alone, so nobody
    has to ask the others. (Sides of no length, which `valid` leaves out of the triples, are counted here.)

    Args:
        whole: mask of the batch [B, n].
        part: mask of some of its rows, of the same length n.
    """
    return {term: _count(settings, term, part) / max(_count(settings, term, whole), 1) for term in settings.terms}


def _count(settings: ObjectiveSettings, term: str, mask: Tensor) -> int:
    """What the mean of a term is divided by, up to a factor that is the same for every part."""
    words = mask.long().sum(1)
    how, per_row = settings.normalization, int(words[words > 1].sum())
    pairs = {"valid": int((words * (words - 1)).sum()), "per_row": per_row, "reference": int((words**2).sum())}[how]
    counts: dict[str, Callable[[], int]] = {
        "hidden_mse": lambda: len(mask) if how == "reference" else int(words.sum()),
        "word_pair": lambda: pairs,
        "word_distance": lambda: pairs,
        "word_angle": lambda: _triples(mask, settings.window, how),
    }
    if term.startswith("layer_"):
        return int(words.sum())
    return counts[term]() if term in counts else len(mask)


def _triples(mask: Tensor, window: int | None, how: Normalization) -> int:
    """Triples of words, within a window neighbours of every word; for `per_row` the words that have any."""
    words = mask.long().sum(1, keepdim=True)
    if how == "reference":
        return int((words if window else words**3).sum())
    neighbours = (words if window is None else _near(mask, window)) * mask.long() - 1
    triples = (neighbours * (neighbours - 1)) * mask.long()
    return int(triples.count_nonzero() if how == "per_row" else triples.sum())


def _near(mask: Tensor, window: int) -> Tensor:
    """Words within the window of each place, its own counted too [B, n]."""
    ones = torch.ones(1, 1, window, device=mask.device)
    return torch.nn.functional.conv1d(mask.float()[:, None], ones, padding=window // 2)[:, 0].round().long()
