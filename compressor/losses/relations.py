"""CKD's relations between words (WR) and between layers (LTR), from Gram matrices.

Contextual Knowledge Distillation (Park, Kim, Yang, EMNLP 2021, arXiv 2109.08359) does not compare hidden states but
how they stand to each other: pairs of points (cosine or distance) and triples of points (the angle at one of them).
The points are the words of one layer (WR) or the layers of one word (LTR). Teacher and student may differ in width,
since a relation is a scalar.

Shapes: B sentences, L matched states (the embeddings count as one), n tokens, d hidden;
inside this file a *group* is a set of p points that are related to each other: [..., p, d], its mask [..., p].

No difference vector is ever formed: with G = X Xᵀ the angle at i between j and k has the cosine
(G_jk - G_ij - G_ik + G_ii) / (D_ij D_ik), D²_ij = G_ii + G_jj - 2 G_ij. X is centred first (angles and distances do
not change), for BERT's upper layers share so large a mean that its square would drown the differences in float32.

Normalisation: `valid` divides the sum over valid entries by their number: pairs j≠i, or triples whose three points
differ and whose two sides have a length, all of them words and no padding. `reference` divides as the authors' code
does, by all n² (or n³) combinations, keeps its clamped window borders, and lets padding into a window.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from compressor.losses.angles import Penalty, sum_of_angle_penalties

Normalization = Literal["valid", "reference"]

_PENALTIES: dict[str, Callable[..., Tensor]] = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "smooth_l1": functional.smooth_l1_loss,
}


def word_pair(teacher: Tensor, student: Tensor, mask: Tensor, *, normalization: Normalization = "valid") -> Tensor:
    """Pair-wise word relation: KL divergence between softmaxes of the words' cosines.

    For each word i, P = softmax over the other words j of cos(t_i, t_j), Q the same for the student; the loss sums
    P log(P / Q) over i and j. The authors' default form of WR (`WR_Dist` with cosine and KL).

    Args:
        teacher: hidden states [B, L, n, d_teacher]; no gradient flows into them.
        student: hidden states [B, L, n, d_student].
        mask: [B, n], 1 for words (with [CLS] and [SEP]), 0 for padding.
        normalization: `valid` divides by the number of ordered pairs j≠i, `reference` by L·Σn².

    Returns:
        A scalar; 0 if no sentence has three words to compare (a softmax over one word is always 1).

    Example:
        >>> states = torch.randn(2, 3, 7, 8)
        >>> word_pair(states, 2 * states, torch.ones(2, 7)).item() < 1e-6
        True
    """
    return _pair_divergence(*_by_word(teacher, student, mask), normalization)


def word_distance(
    teacher: Tensor,
    student: Tensor,
    mask: Tensor,
    *,
    normalization: Normalization = "valid",
    penalty: Penalty = "smooth_l1",
) -> Tensor:
    """Pair-wise word relation in its other form: squared distances, each sentence's divided by their mean.

    The distance is squared because the flag of the authors' distance function is inverted and no caller asks
    for the root (`WR_Dist` with `l2`). Arguments and result as in `word_pair`; `penalty` compares the two.
    """
    return _pair_distance(*_by_word(teacher, student, mask), normalization, penalty)


def word_angle(
    teacher: Tensor,
    student: Tensor,
    mask: Tensor,
    *,
    normalization: Normalization = "valid",
    window: int | None = None,
    penalty: Penalty = "l2",
) -> Tensor:
    """Triple-wise word relation: the cosine of the angle at word i between words j and k.

    Args:
        teacher: hidden states [B, L, n, d_teacher]; no gradient flows into them.
        student: hidden states [B, L, n, d_student].
        mask: [B, n], 1 for words, 0 for padding.
        normalization: `valid` divides by the number of valid triples, `reference` by L·Σn³ (L·window²·Σn).
        window: odd number of words around i (i included) that j and k are taken from; None takes all.
            The authors run 21 (`WR_Angle_window`). Without it the angles are streamed and memory stays at B·L·n²
            numbers; with it it is B·L·n·window².
        penalty: compares the two cosines; the authors' default is the squared error.

    Raises:
        ValueError: the window is even or below 3.
    """
    if window is not None and (window < 3 or window % 2 == 0):
        raise ValueError(f"window is {window}; an odd number from 3 on is needed: the word and as many on each side")
    return _angles(*_by_word(teacher, student, mask), normalization, penalty, window)


def layer_pair(teacher: Tensor, student: Tensor, mask: Tensor, *, normalization: Normalization = "valid") -> Tensor:
    """Pair-wise layer transforming relation: `word_pair` with the L states of one word as the points (`LTR_Dist`).

    Arguments as in `word_pair`; `reference` divides by L²·Σn. Fewer than three states give 0.
    """
    return _pair_divergence(*_by_layer(teacher, student, mask), normalization)


def layer_distance(
    teacher: Tensor,
    student: Tensor,
    mask: Tensor,
    *,
    normalization: Normalization = "valid",
    penalty: Penalty = "smooth_l1",
) -> Tensor:
    """Pair-wise layer transforming relation over squared distances: `word_distance` with layers as the points."""
    return _pair_distance(*_by_layer(teacher, student, mask), normalization, penalty)


def layer_angle(
    teacher: Tensor,
    student: Tensor,
    mask: Tensor,
    *,
    normalization: Normalization = "valid",
    penalty: Penalty = "l2",
) -> Tensor:
    """Triple-wise layer transforming relation: the angle at state l between states m and o (`LTR_Angle`).

    Arguments as in `word_angle`; `reference` divides by L³·Σn. Fewer than three states give 0.
    """
    return _angles(*_by_layer(teacher, student, mask), normalization, penalty)


Group = tuple[Tensor, Tensor, Tensor]


def _checked(teacher: Tensor, student: Tensor, mask: Tensor) -> Group:
    """States in at least float32, the teacher's without gradient, the mask as booleans."""
    expected = tuple(student.shape[:3])
    if teacher.ndim != 4 or student.ndim != 4 or tuple(teacher.shape[:3]) != expected:
        raise ValueError(
            "states must be [B, L, n, d] with equal B, L and n; "
            f"teacher has {tuple(teacher.shape)}, student has {tuple(student.shape)}"
        )
    if tuple(mask.shape) != (expected[0], expected[2]):
        raise ValueError(f"mask must be [B, n] = {(expected[0], expected[2])}, has {tuple(mask.shape)}")
    precision = torch.promote_types(student.dtype, torch.float32)
    return teacher.detach().to(precision), student.to(precision), mask.bool()


def _by_word(teacher: Tensor, student: Tensor, mask: Tensor) -> Group:
    """Groups of the n words of one state: points [B, L, n, d], mask [B, L, n]."""
    teacher, student, words = _checked(teacher, student, mask)
    return teacher, student, words[:, None, :].expand(student.shape[:3])


def _by_layer(teacher: Tensor, student: Tensor, mask: Tensor) -> Group:
    """Groups of the L states of one word: points [B, n, L, d], mask [B, n, L]."""
    teacher, student, words = _checked(teacher, student, mask)
    batch, states, tokens, _ = student.shape
    return teacher.transpose(1, 2), student.transpose(1, 2), words[:, :, None].expand(batch, tokens, states)


def _gram(points: Tensor) -> Tensor:
    """[..., p, d] -> [..., p, p], never in half precision."""
    with torch.autocast(points.device.type, enabled=False):
        return points @ points.transpose(-1, -2)


def _centred(points: Tensor, valid: Tensor) -> Tensor:
    """Points minus the mean of the valid ones, which is a constant to the gradient: no relation depends on it."""
    weight = valid[..., None].to(points.dtype)
    mean = (points.detach() * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp(min=1)
    return points - mean


def _pairs(valid: Tensor) -> Tensor:
    """[..., p] -> [..., p, p], true where two different points are both valid."""
    different = ~torch.eye(valid.shape[-1], dtype=torch.bool, device=valid.device)
    return valid[..., :, None] & valid[..., None, :] & different


def _log_softmax_of_cosines(points: Tensor, pairs: Tensor) -> Tensor:
    """Log-softmax over the other valid points of a row, [..., p, p]; finite everywhere, meaningless off `pairs`."""
    length = points.square().sum(-1, keepdim=True)
    # The reference divides by max(‖x‖, 1e-8), as torch's cosine does.
    direction = points * length.clamp(min=1e-16).rsqrt()
    return _gram(direction).masked_fill(~pairs, -1e4).log_softmax(-1)


def _pair_divergence(teacher: Tensor, student: Tensor, valid: Tensor, normalization: Normalization) -> Tensor:
    pairs = _pairs(valid)
    log_p = _log_softmax_of_cosines(teacher, pairs)
    log_q = _log_softmax_of_cosines(student, pairs)
    divergence = torch.where(pairs, log_p.exp() * (log_p - log_q), 0).sum()
    return divergence / _pair_count(valid, pairs, normalization)


def _pair_count(valid: Tensor, pairs: Tensor, normalization: Normalization) -> Tensor:
    """What a sum over pairs is divided by: the valid ones, or as in the reference all p² of each group."""
    count = pairs.sum() if normalization == "valid" else valid.sum(-1).square().sum()
    return count.clamp(min=1)


def _squared_distances(points: Tensor, valid: Tensor) -> Tensor:
    """[..., p, d] -> [..., p, p], exactly 0 on the diagonal."""
    gram = _gram(_centred(points, valid))
    square = gram.diagonal(dim1=-2, dim2=-1)
    distance = (square[..., :, None] + square[..., None, :] - 2 * gram).clamp(min=0)
    return distance * ~torch.eye(distance.shape[-1], dtype=torch.bool, device=distance.device)


def _pair_distance(
    teacher: Tensor, student: Tensor, valid: Tensor, normalization: Normalization, penalty: Penalty
) -> Tensor:
    pairs = _pairs(valid)
    relative_teacher, relative_student = (_over_mean(_squared_distances(x, valid), pairs) for x in (teacher, student))
    difference = _PENALTIES[penalty](relative_student, relative_teacher, reduction="none")
    return torch.where(pairs, difference, 0).sum() / _pair_count(valid, pairs, normalization)


def _over_mean(distance: Tensor, pairs: Tensor) -> Tensor:
    """Distances over the mean of the positive ones of their group; a group without any stays 0."""
    positive = pairs & (distance > 0)
    total = torch.where(positive, distance, 0).sum((-2, -1), keepdim=True)
    count = positive.sum((-2, -1), keepdim=True)
    some = count > 0
    return torch.where(some, distance * count / torch.where(some, total, 1), 0)


def _angles(
    teacher: Tensor,
    student: Tensor,
    valid: Tensor,
    normalization: Normalization,
    penalty: Penalty,
    window: int | None = None,
) -> Tensor:
    """Mean penalty between the cosines of teacher and student at every vertex i, over its neighbours j and k."""
    grams = _gram(_centred(teacher, valid)), _gram(_centred(student, valid))
    if window is None:
        return _all_angles(*grams, valid, normalization, penalty)
    return _windowed_angles(*grams, valid, normalization, penalty, window)


def _all_angles(
    teacher: Tensor, student: Tensor, valid: Tensor, normalization: Normalization, penalty: Penalty
) -> Tensor:
    """Every point is a neighbour of every other; Gram matrices [..., p, p]."""
    teacher_sides, student_sides = (_sides(gram, _pairs(valid)) for gram in (teacher, student))
    if normalization == "valid":
        teacher_sides = student_sides = teacher_sides & student_sides
        neighbours = student_sides.sum(-1)
        count = (neighbours * (neighbours - 1)).sum()
    else:
        count = valid.sum(-1).pow(3).sum()
    total = sum_of_angle_penalties(teacher, student, teacher_sides, student_sides, penalty)
    return total / count.clamp(min=1)


def _sides(gram: Tensor, pairs: Tensor) -> Tensor:
    """Pairs whose distance has a length: one that is not lost in rounding, D² > eps (s_i + s_j)."""
    gram = gram.detach()
    square = gram.diagonal(dim1=-2, dim2=-1)
    sum_of_squares = square[..., :, None] + square[..., None, :]
    return pairs & (sum_of_squares - 2 * gram > _tolerance(gram) * sum_of_squares + torch.finfo(gram.dtype).tiny)


def _tolerance(gram: Tensor) -> float:
    return 1e-6 if gram.dtype == torch.float32 else 1e-12


def _windowed_angles(
    teacher: Tensor, student: Tensor, valid: Tensor, normalization: Normalization, penalty: Penalty, window: int
) -> Tensor:
    """Neighbours stand within a window around the vertex; Gram matrices [..., p, p]."""
    index, inside = _neighbours(valid.shape[-1], window, valid.device)
    vertex = torch.arange(len(index), device=index.device)[:, None]
    sides = index != vertex
    if normalization == "valid":
        sides = sides & inside & valid[..., :, None] & valid[..., index]
    teacher_cosines, teacher_apart = _windowed_cosines(teacher, index, sides)
    student_cosines, student_apart = _windowed_cosines(student, index, sides)
    if normalization == "valid":
        both = teacher_apart & student_apart
        different = ~torch.eye(window, dtype=torch.bool, device=index.device)
        triples = both[..., :, None] & both[..., None, :] & different
        count = triples.sum()
    else:
        # The authors mask the vertex alone: padding stands in the windows of a sentence's last words.
        triples = valid[..., :, None, None]
        count = valid.sum() * window**2
    difference = _PENALTIES[penalty](student_cosines, teacher_cosines, reduction="none")
    return torch.where(triples, difference, 0).sum() / count.clamp(min=1)


def _neighbours(points: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices [p, w] of the neighbours of each point, clamped at the borders, and where they were not clamped.

    Only `valid` leaves the clamped ones out; `reference` lets the first and the last word stand in for what lies
    beyond them, as the authors do, and so gives them more weight.
    """
    reach = (window - 1) // 2
    index = torch.arange(points, device=device)[:, None] + torch.arange(-reach, reach + 1, device=device)
    return index.clamp(0, points - 1), (index >= 0) & (index < points)


def _windowed_cosines(gram: Tensor, index: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of the angles at each vertex, and which of its sides have a length.

    Args:
        gram: [..., p, p] of centred points.
        index: [p, w], the neighbours of each vertex.
        sides: [p, w] or [..., p, w], true where vertex and neighbour may be taken as a side.

    Returns:
        Cosines [..., p, w, w], 0 where a side has no length or is not taken; and [..., p, w], true where
        it is taken and has one.
    """
    square = gram.diagonal(dim1=-2, dim2=-1)
    near = gram[..., torch.arange(len(index), device=index.device)[:, None], index]
    across = gram[..., index[:, :, None], index[:, None, :]]
    sum_of_squares = square[..., :, None] + square[..., index]
    distance = sum_of_squares - 2 * near
    least = _tolerance(gram) * sum_of_squares + torch.finfo(gram.dtype).tiny
    apart = sides & (distance.detach() > least.detach())
    # The inner `where` keeps the gradient of the root finite where the outer one drops the value.
    inverse = torch.where(apart, torch.where(apart, distance, 1).rsqrt(), 0)
    product = across - near[..., :, None] - near[..., None, :] + square[..., :, None, None]
    return product * inverse[..., :, None] * inverse[..., None, :], apart
