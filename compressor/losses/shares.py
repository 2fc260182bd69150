"""What part of a batch's loss a part of the batch makes up."""

from collections.abc import Callable

import torch
from torch import Tensor

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
    valid = settings.normalization == "valid"
    counts: dict[str, Callable[[], int]] = {
        "hidden_mse": lambda: int(words.sum()) if valid else len(mask),
        "word_pair": lambda: int((words * (words - 1) if valid else words**2).sum()),
        "word_angle": lambda: _triples(mask.bool(), settings.window, valid),
        "layer_pair": lambda: int(words.sum()),
        "layer_angle": lambda: int(words.sum()),
    }
    return counts[term]() if term in counts else len(mask)


def _triples(mask: Tensor, window: int | None, valid: bool) -> int:
    """Triples of words; within a window, neighbours of every word."""
    words = mask.long().sum(1)
    if window is None:
        return int((words * (words - 1) * (words - 2) if valid else words**3).sum())
    if not valid:
        return int(words.sum())
    ones = torch.ones(1, 1, window, device=mask.device)
    near = torch.nn.functional.conv1d(mask.float()[:, None], ones, padding=window // 2)
    neighbours = (near[:, 0].round().long() - 1) * mask
    return int((neighbours * (neighbours - 1)).sum())
