"""CKD's relations between words (WR) and between layers (LTR).

Contextual Knowledge Distillation (Park, Kim, Yang, EMNLP 2021, arXiv 2109.08359) does not compare hidden states but
how they stand to each other: pairs of points (cosine or distance) and triples of points (the angle at one of them).
The points are the words of one layer (WR) or the layers of one word (LTR). Teacher and student may differ in width,
since a relation is a scalar.

Shapes: B sentences, L matched states (the embeddings count as one), n tokens, d hidden. No difference vector is ever
formed: `geometry` holds the products of points, and everything is read from them.

Normalisation. `valid` divides the sum over valid entries by their number: pairs j≠i, or triples whose three points
differ and whose two sides have a length, all of them words and no padding. `per_row` lets every point i that has any
count once: the mean over points of the KL divergence of the row, or of the row's mean of distances or angles.
`reference` divides as the authors' code does, by all n² (or n³) combinations, keeps its clamped window borders, and
lets padding into a window; the published weights were tuned for it.
"""

from typing import Literal

import torch
from torch import Tensor

from compressor.losses.angles import PENALTIES, Penalty, sum_of_angle_penalties
from compressor.losses.geometry import Geometry, Group

Normalization = Literal["valid", "per_row", "reference"]


def word_pair(
    teacher: Tensor,
    student: Tensor,
    mask: Tensor,
    *,
    normalization: Normalization = "valid",
    temperature: float = 1.0,
) -> Tensor:
    """Pair-wise word relation: KL divergence between softmaxes of the words' cosines.

        P_ij = softmax over j≠i of cos(t_i, t_j) / T,  Q_ij the same of the student,  L = Σ_ij P_ij log(P_ij / Q_ij) / Z

    The authors' default form of WR (`WR_Dist` with cosine and KL; word relation in section 3 of the paper). On torch 2
    their own code gives NaN: the diagonal is -inf on both sides. At T = 1 cosines lie within ±1, so that P is nearly
    flat and L small (0.008 on the golden inputs, below 0.02 for 12 sizes of a MiniLM together): a weight of 1 beside
    logits does next to nothing. A smaller T sharpens P. L does not change when states are turned or scaled one by one.

    Args:
        teacher: hidden states [B, L, n, d_teacher]; no gradient flows into them.
        student: hidden states [B, L, n, d_student].
        mask: [B, n], 1 for words (with [CLS] and [SEP]), 0 for padding.
        normalization: `valid` divides by the number of ordered pairs j≠i, `per_row` by the number of words that have
            another one, `reference` by L·Σn².
        temperature: divides the cosines; the authors' is 1, at which a softmax over many words is nearly flat.

    Returns:
        A scalar; 0 if no sentence has three words to compare (a softmax over one word is always 1).

    Example:
        >>> states = torch.randn(2, 3, 7, 8)
        >>> word_pair(states, 2 * states, torch.ones(2, 7)).item() < 1e-6
        True
    """
    return pair_divergence(*_words(teacher, student, mask, temperature), normalization)


def word_distance(
    teacher: Tensor,
    student: Tensor,
    mask: Tensor,
    *,
    normalization: Normalization = "valid",
    penalty: Penalty = "smooth_l1",
) -> Tensor:
    """Pair-wise word relation in its other form: squared distances, each sentence's divided by their mean.

        D_ij = ‖x_i - x_j‖²,   L = Σ_ij penalty(D^s_ij / mean D^s - D^t_ij / mean D^t) / Z, means over positive entries

    The distance is squared because the flag of the authors' distance function is inverted and no caller asks
    for the root (`WR_Dist` with `l2`). A text of one word gives 0; the authors' code divides 0 by 0 there.
    Arguments and result as in `word_pair`; `penalty` is `smooth_l1` (Huber, β=1), `l1` or `l2`.

    Example:
        >>> states = torch.randn(2, 3, 7, 8)
        >>> word_distance(states, 5 * states + 1, torch.ones(2, 7)).item() < 1e-6
        True
    """
    return pair_distance(*_words(teacher, student, mask), normalization, penalty)


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

        ψ_ijk = ⟨x_j - x_i, x_k - x_i⟩ / (‖x_j - x_i‖ ‖x_k - x_i‖),   L = Σ_ijk penalty(ψ^s_ijk - ψ^t_ijk) / Z

    `WR_Angle` and `WR_Angle_window`; word relation of three in section 3 of the paper. Sides without a length (a word
    that stands twice, D² below 1e-6 of the two squared lengths in float32) are left out of both models by `valid` and
    `per_row`; `reference` gives their angles the cosine 0, as the authors' code does. Sums are formed in float64,
    for two points that nearly coincide would cost all digits otherwise; a device without it cannot run `l2`.

    Args:
        teacher: hidden states [B, L, n, d_teacher]; no gradient flows into them.
        student: hidden states [B, L, n, d_student].
        mask: [B, n], 1 for words, 0 for padding.
        normalization: `valid` divides by the number of valid triples, `per_row` takes the mean of every word that has
            any, `reference` divides by L·Σn³ (L·window²·Σn).
        window: odd number of words around i (i included) that j and k are taken from; None takes all.
            The authors run 21 (`WR_Angle_window`).
        penalty: compares the two cosines. The squared error, the authors' default, is a sum of matrix products;
            the others form B·L·n³ angles, a few words at a time, window or not.

    Raises:
        ValueError: the window is even or below 3.

    Example:
        >>> states = torch.randn(2, 3, 7, 8)
        >>> word_angle(states, 2 * states + 1, torch.ones(2, 7), window=5).item() < 1e-6
        True
    """
    if window is not None and (window < 3 or window % 2 == 0):
        raise ValueError(f"window is {window}; an odd number from 3 on is needed: the word and as many on each side")
    return angle(*_words(teacher, student, mask), normalization, penalty, window)


def layer_pair(
    teacher: Tensor,
    student: Tensor,
    mask: Tensor,
    *,
    normalization: Normalization = "valid",
    temperature: float = 1.0,
) -> Tensor:
    """Pair-wise layer transforming relation: `word_pair` with the L states of one word as the points (`LTR_Dist`).

        P_lm = softmax over m≠l of cos(x_l, x_m) / T for the states x_1..x_L of one word, and so on as there

    Arguments as in `word_pair`; `reference` divides by L²·Σn. Fewer than three states give 0. The authors' training
    code reads the published weight of this term under a wrong name and never applies it.

    Example:
        >>> states = torch.randn(2, 4, 7, 8)
        >>> layer_pair(states, 2 * states, torch.ones(2, 7)).item() < 1e-6
        True
    """
    return pair_divergence(*_layers(teacher, student, mask, temperature), normalization)


def layer_distance(
    teacher: Tensor,
    student: Tensor,
    mask: Tensor,
    *,
    normalization: Normalization = "valid",
    penalty: Penalty = "smooth_l1",
) -> Tensor:
    """Pair-wise layer transforming relation over squared distances: `word_distance` with layers as the points.

    `LTR_Dist` with `l2`; two states suffice, though over their mean both distances are 1.

    Example:
        >>> states = torch.randn(2, 4, 7, 8)
        >>> layer_distance(states, 5 * states + 1, torch.ones(2, 7)).item() < 1e-6
        True
    """
    return pair_distance(*_layers(teacher, student, mask), normalization, penalty)


def layer_angle(
    teacher: Tensor,
    student: Tensor,
    mask: Tensor,
    *,
    normalization: Normalization = "valid",
    penalty: Penalty = "l2",
) -> Tensor:
    """Triple-wise layer transforming relation: the angle at state l between states m and o (`LTR_Angle`).

        ψ_lmo = cosine of the angle at x_l between x_m and x_o, states of one word, and so on as in `word_angle`

    Arguments as in `word_angle`; `reference` divides by L³·Σn. Fewer than three states give 0. The authors' README
    cannot run this term: its argument is called `lossfunc` in one place and `loss` in the other.

    Example:
        >>> states = torch.randn(2, 4, 7, 8)
        >>> layer_angle(states, 2 * states + 1, torch.ones(2, 7)).item() < 1e-6
        True
    """
    return angle(*_layers(teacher, student, mask), normalization, penalty)


def pair_divergence(teacher: Group, student: Group, normalization: Normalization) -> Tensor:
    """KL divergence between the softmaxes of cosines; arguments of `word_pair`, points in groups."""
    divergence = (teacher.shares * (teacher.log_shares - student.log_shares)).sum()
    if normalization == "per_row":
        # A row's sum is its divergence already.
        return divergence / student.pairs.any(-1).sum().clamp(min=1)
    return divergence / _pair_count(student, normalization)


def pair_distance(teacher: Group, student: Group, normalization: Normalization, penalty: Penalty) -> Tensor:
    """Penalty between squared distances over their mean; arguments of `word_distance`, points in groups."""
    pairs = student.pairs
    difference = PENALTIES[penalty](_over_mean(student), _over_mean(teacher), reduction="none").masked_fill(~pairs, 0)
    if normalization == "per_row":
        others = pairs.sum(-1)
        return (difference.sum(-1) / others.clamp(min=1)).sum() / others.count_nonzero().clamp(min=1)
    return difference.sum() / _pair_count(student, normalization)


def angle(
    teacher: Group, student: Group, normalization: Normalization, penalty: Penalty, window: int | None = None
) -> Tensor:
    """Penalty between cosines of angles; arguments of `word_angle`, points in groups."""
    near = None if window is None else _near(student.gram, window)
    if normalization == "reference":
        return _reference_angle(teacher, student, penalty, near, window)
    sides = student.pairs & teacher.apart & student.apart
    if near is not None:
        sides = sides & (near > 0)
    neighbours = sides.sum(-1, dtype=student.gram.dtype)
    triples = neighbours * (neighbours - 1)
    weights, count = student.gram.new_ones(()), triples.sum()
    if normalization == "per_row":
        weights, count = triples.clamp(min=1).rsqrt()[..., None], triples.count_nonzero()
    total = sum_of_angle_penalties(
        teacher.gram, student.gram, sides, sides, weights, penalty, None if window is None else window // 2
    )
    return total / count.clamp(min=1)


def _reference_angle(
    teacher: Group, student: Group, penalty: Penalty, near: Tensor | None, window: int | None
) -> Tensor:
    """As the authors count: a side without length has angles of cosine 0, and padding stands in windows."""
    words = student.valid
    if near is None or window is None:
        pairs, count, near, reach = student.pairs, words.sum(-1).pow(3).sum(), student.gram.new_ones(()), None
    else:
        # The authors mask the vertex alone: padding stands in the windows of a sentence's last words.
        pairs, count, reach = student.different & words[..., None], words.sum() * window**2, window // 2
    sides = pairs & teacher.apart, pairs & student.apart
    return sum_of_angle_penalties(teacher.gram, student.gram, *sides, near, penalty, reach) / count.clamp(min=1)


def _near(gram: Tensor, window: int) -> Tensor:
    """How often each point stands in the window of each vertex, [p, p]: places beyond the border count for the border.

    Only `reference` counts them; there the first and the last word stand in for what lies beyond them, as in
    the authors' code, and so get more weight.
    """
    points, reach = gram.shape[-1], window // 2
    offsets = torch.arange(-reach, reach + 1, device=gram.device)
    index = (torch.arange(points, device=gram.device)[:, None] + offsets).clamp(0, points - 1)
    return gram.new_zeros(points, points).scatter_add_(1, index, gram.new_ones(index.shape))


def _pair_count(group: Group, normalization: Normalization) -> Tensor:
    """What a sum over pairs is divided by: the valid ones, or as in the reference all p² of each group."""
    count = group.pairs.sum() if normalization == "valid" else group.valid.sum(-1).square().sum()
    return count.clamp(min=1)


def _over_mean(group: Group) -> Tensor:
    """Squared distances over the mean of the positive ones of their group; a group without any stays 0."""
    distance = group.squared_distances
    positive = group.pairs & (distance > 0)
    total = torch.where(positive, distance, 0).sum((-2, -1), keepdim=True)
    count = positive.sum((-2, -1), keepdim=True)
    some = count > 0
    return torch.where(some, distance * count / torch.where(some, total, 1), 0)


def _words(teacher: Tensor, student: Tensor, mask: Tensor, temperature: float = 1.0) -> tuple[Group, Group]:
    """Groups of the n words of one state, [B, L]."""
    both = _geometries(teacher, student, mask, temperature)
    return both[0].words, both[1].words


def _layers(teacher: Tensor, student: Tensor, mask: Tensor, temperature: float = 1.0) -> tuple[Group, Group]:
    """Groups of the L states of one word, [B, n]."""
    both = _geometries(teacher, student, mask, temperature)
    return both[0].layers, both[1].layers


def _geometries(teacher: Tensor, student: Tensor, mask: Tensor, temperature: float) -> tuple[Geometry, Geometry]:
    _check_shapes(teacher, student, mask)
    return Geometry(teacher.detach(), mask, temperature), Geometry(student, mask, temperature)


def _check_shapes(teacher: Tensor, student: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless states are [B, L, n, ...] alike and the mask is [B, n]."""
    expected = tuple(student.shape[:3])
    if teacher.ndim != 4 or student.ndim != 4 or tuple(teacher.shape[:3]) != expected:
        raise ValueError(
            "states must be [B, L, n, d] with equal B, L and n; "
            f"teacher has {tuple(teacher.shape)}, student has {tuple(student.shape)}"
        )
    if tuple(mask.shape) != (expected[0], expected[2]):
        raise ValueError(f"mask must be [B, n] = {(expected[0], expected[2])}, has {tuple(mask.shape)}")
