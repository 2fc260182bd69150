"""The sum over all angles of a set of points, from Gram matrices.

For points with Gram matrix G (centred), s_i = G_ii, D²_ij = s_i + s_j - 2 G_ij and r_ij = 1 / D_ij (0 where the side
ij is not taken), the cosine of the angle at i between j and k is

    ψ_ijk = N_ijk r_ij r_ik,   N_ijk = G_jk + h_ij + h_ik,   h_ij = s_i / 2 - G_ij.

Squared errors need no cube of p³ angles. With S, h, r of the student, T, k, q of the teacher and multiplicities m_ij,

    Σ_ijk m_ij m_ik (ψ^s - ψ^t)² = Σ_i F_i(S, S; m r r) - 2 F_i(S, T; m r q) + F_i(T, T; m q q),
    F_i(X, Y; w) = Σ_jk w_ij w_ik N^X_ijk N^Y_ijk,

and F multiplies out into products of p x p matrices: Σ_k w_ik X_jk Y_jk is w (X∘Y), and so on. The differences of these
sums lose digits where points nearly coincide (r² s is large there), so they are formed in float64, which costs little
where all is matrix products. Other penalties do need the cube; it is formed for a few vertices at a time.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Penalty = Literal["l1", "l2", "smooth_l1"]

PENALTIES: dict[str, Callable[..., Tensor]] = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "smooth_l1": functional.smooth_l1_loss,
}

# Numbers of one matrix that are worked on at once: a dozen such stay in a core's cache, a GPU wants more.
_AT_ONCE = {"cpu": 2**17}
_AT_ONCE_ELSEWHERE = 2**22
# The same for cubes of angles.
_CUBE_AT_ONCE = {"cpu": 2**20}
_CUBE_AT_ONCE_ELSEWHERE = 2**25
# Vertices of a window that share a block: fewer waste less beside the band, more make larger products.
_BLOCK = 32


def sum_of_angle_penalties(
    teacher: Tensor,
    student: Tensor,
    teacher_sides: Tensor,
    student_sides: Tensor,
    weights: Tensor,
    penalty: Penalty,
    reach: int | None = None,
) -> Tensor:
    """Σ over i, j, k of weight_ij weight_ik times the penalty between the cosines of teacher and student.

    Args:
        teacher, student: Gram matrices [..., p, p] of centred points, symmetric.
        teacher_sides, student_sides: [..., p, p], true where ij is a side: different points, both valid, apart.
            An angle with a side that is not taken counts as 0.
        weights: broadcasts to [..., p, p].
        penalty: `l2` squared error, `l1` absolute error, `smooth_l1` Huber with β=1.
        reach: weights are 0 where i and j stand further apart; None if any of them may differ from 0.

    Returns:
        A scalar, differentiable with respect to the student's Gram matrix (`l2`: once).
    """
    shape = student.shape
    grams = (teacher.detach().flatten(0, -3), student.flatten(0, -3))
    sides = (teacher_sides.flatten(0, -3), student_sides.flatten(0, -3))
    spread = weights.to(student.dtype).expand(shape).flatten(0, -3)
    # Autocast would do the matrix products in half precision.
    with torch.autocast(student.device.type, enabled=False):
        if penalty == "l2":
            total: Tensor = _SquaredErrors.apply(*grams, *sides, spread, reach)
            return total
        return _streamed(*grams, *sides, spread, penalty)


class _SquaredErrors(torch.autograd.Function):
    """Computes the gradient with the value, which share most products."""

    @staticmethod
    def forward(
        ctx: Any,
        teacher: Tensor,
        student: Tensor,
        teacher_sides: Tensor,
        student_sides: Tensor,
        weights: Tensor,
        reach: int | None,
    ) -> Tensor:
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[1] else None
        total = student.new_zeros((), dtype=torch.float64)
        for rows, columns in _blocks(student.shape[-1], reach):
            inner = slice(rows.start - columns.start, rows.stop - columns.start)
            for part in _parts(len(student), (columns.stop - columns.start) ** 2, student.device):
                square, strip = (part, columns, columns), (part, rows, columns)
                block = _Block(
                    teacher[square].double(),
                    student[square].double(),
                    teacher_sides[strip],
                    student_sides[strip],
                    weights[strip].double(),
                    inner,
                )
                total += block.value()
                if gradient is not None:
                    gradient[square] += block.gradient()
        ctx.gradient = gradient
        return total.to(student.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.gradient * upstream, None, None, None, None


def _blocks(points: int, reach: int | None) -> Iterator[tuple[slice, slice]]:
    """Vertices, and the points that stand within their reach."""
    if reach is None or points <= _BLOCK + 2 * reach:
        yield slice(0, points), slice(0, points)
        return
    for start in range(0, points, _BLOCK):
        stop = min(start + _BLOCK, points)
        yield slice(start, stop), slice(max(0, start - reach), min(points, stop + reach))


def _parts(groups: int, numbers: int, device: torch.device) -> Iterator[slice]:
    step = max(1, _AT_ONCE.get(device.type, _AT_ONCE_ELSEWHERE) // numbers)
    return (slice(start, start + step) for start in range(0, groups, step))


class _Block:
    """The squared errors at v vertices that stand among p points, and their gradient.

    Args:
        teacher, student: T and S, [m, p, p] float64.
        teacher_sides, student_sides: [m, v, p].
        weights: m, [m, v, p].
        rows: where the vertices stand among the points.
    """

    def __init__(
        self,
        teacher: Tensor,
        student: Tensor,
        teacher_sides: Tensor,
        student_sides: Tensor,
        weights: Tensor,
        rows: slice,
    ) -> None:
        self._teacher, self._student, self._rows, self._weights = teacher, student, rows, weights
        self._k, self._q = _half_and_inverse(teacher, teacher_sides, rows)
        self._h, self._r = _half_and_inverse(student, student_sides, rows)

    def value(self) -> Tensor:
        """Keeps what the gradient needs of it."""
        weighted = self._weights * self._r
        self._a, self._c = weighted * self._r, weighted * self._q
        own = torch.linalg.vecdot(self._a.flatten(), self._own().flatten())
        mixed = torch.linalg.vecdot(self._c.flatten(), self._mixed().flatten())
        return own - 2 * mixed + _sum_of_squares(self._weights * self._q.square(), self._k, self._teacher)

    def _own(self) -> Tensor:
        """P_ij = Σ_k a_ik N²_ijk of the student; keeps Q_ij = Σ_k a_ik N_ijk."""
        a, h, student = self._a, self._h, self._student
        self._ah = ah = a * h
        product, sum_ah = a @ student, ah.sum(-1, keepdim=True)
        self._q_own = torch.addcmul(product, h, a.sum(-1, keepdim=True)).add_(sum_ah)
        self._p = torch.baddbmm(torch.linalg.vecdot(ah, h)[..., None], a, student.square())
        self._p.baddbmm_(ah, student, alpha=2)
        return self._p.addcmul_(h, product.add_(self._q_own).add_(sum_ah))

    def _mixed(self) -> Tensor:
        """P_ij = Σ_k c_ik N^s_ijk N^t_ijk; keeps Q_ij = Σ_k c_ik N^t_ijk."""
        c, h, k, student, teacher = self._c, self._h, self._k, self._student, self._teacher
        self._ck, ch = c * k, c * h
        self._q_mixed = torch.baddbmm(self._ck.sum(-1, keepdim=True), c, teacher)
        self._q_mixed.addcmul_(k, c.sum(-1, keepdim=True))
        self._p_mixed = torch.baddbmm(torch.linalg.vecdot(ch, k)[..., None], c, student * teacher)
        self._p_mixed.baddbmm_(self._ck, student).baddbmm_(ch, teacher)
        self._p_mixed.addcmul_(k, torch.baddbmm(ch.sum(-1, keepdim=True), c, student))
        return self._p_mixed.addcmul_(h, self._q_mixed)

    def gradient(self) -> Tensor:
        """dL/dG [m, p, p], to be taken together with its transpose: what reads it adds the two."""
        a, c, r = self._a, self._c, self._r
        gradient = (a.mT @ a).mul_(self._student).sub_((c.mT @ c).mul_(self._teacher))
        gradient.baddbmm_(a.mT, self._ah, beta=2, alpha=4).baddbmm_(c.mT, self._ck, alpha=-4)
        of_h = (a * self._q_own).addcmul_(c, self._q_mixed, value=-1)
        of_distance = (r * self._p).addcmul_(self._q, self._p_mixed, value=-1).mul_(self._weights)
        of_distance.mul_(r).mul_(r).mul_(r)
        sides = of_h.sub_(of_distance).mul_(4)
        gradient[:, self._rows].sub_(sides)
        diagonal = gradient.diagonal(dim1=-2, dim2=-1)
        diagonal.sub_(of_distance.sum(-2), alpha=2)
        diagonal[:, self._rows].add_(sides.sum(-1), alpha=0.5)
        return gradient


def _half_and_inverse(gram: Tensor, sides: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """h and r, [m, v, p]."""
    square = gram.diagonal(dim1=-2, dim2=-1)
    half = square[:, rows, None] / 2 - gram[:, rows]
    distance = torch.add(square[:, None, :], half, alpha=2)
    return half, distance.masked_fill_(~sides, torch.inf).rsqrt_()


def _sum_of_squares(b: Tensor, k: Tensor, teacher: Tensor) -> Tensor:
    """Σ_i F_i(T, T; b)."""
    bk = b * k
    products = torch.linalg.vecdot(b, (b @ teacher.square()).baddbmm_(bk, teacher, alpha=4))
    return (products + 2 * torch.linalg.vecdot(bk, k) * b.sum(-1) + 2 * bk.sum(-1).square()).sum()


def _streamed(
    teacher: Tensor, student: Tensor, teacher_sides: Tensor, student_sides: Tensor, weights: Tensor, penalty: Penalty
) -> Tensor:
    """Any penalty, a few vertices' angles at a time; they are formed again for the gradient."""
    every = slice(0, student.shape[-1])
    (k, q), (h, r) = (_half_and_inverse(*x, every) for x in ((teacher, teacher_sides), (student, student_sides)))

    def at(rows: slice) -> Tensor:
        cosines = _cosines(student, h[:, rows], r[:, rows]), _cosines(teacher, k[:, rows], q[:, rows])
        error = PENALTIES[penalty](*cosines, reduction="none")
        return (error * weights[:, rows, :, None] * weights[:, rows, None, :]).sum()

    step = max(1, _CUBE_AT_ONCE.get(student.device.type, _CUBE_AT_ONCE_ELSEWHERE) // max(1, student.numel()))
    total = student.new_zeros(())
    for start in range(0, student.shape[-1], step):
        total = total + checkpoint(at, slice(start, start + step), use_reentrant=False)
    return total


def _cosines(gram: Tensor, half: Tensor, inverse: Tensor) -> Tensor:
    """ψ [m, v, p, p] (i, j, k) at v vertices."""
    numerator = gram[:, None] + half[..., :, None] + half[..., None, :]
    return numerator * inverse[..., :, None] * inverse[..., None, :]
