"""The sum over all angles of a set of points, streamed: a gradient in closed form, no cube kept.

For points with Gram matrix G (centred), s_i = G_ii, D²_ij = s_i + s_j - 2 G_ij and r_ij = 1 / D_ij (0 where the side
ij is not taken), the cosine of the angle at i between j and k is

    ψ_ijk = (G_jk - G_ij - G_ik + s_i) r_ij r_ik.

With δ_ijk = ∂L/∂ψ_ijk (symmetric in j and k), p_ijk = δ_ijk r_ij r_ik and q_ij = -r²_ij Σ_k δ_ijk ψ_ijk:

    dG_jk += Σ_i p_ijk                     dG_ij -= 2 Σ_k p_ijk + 2 q_ij
    dG_ii += Σ_jk p_ijk + Σ_j q_ij         dG_jj += Σ_i q_ij

so that the [p, p, p] cube of a few sets at a time is all that is ever in memory, and it stays in the cache.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Penalty = Literal["l1", "l2", "smooth_l1"]

# Numbers in the cubes that are worked on at once: half a megabyte stays in a core's cache, a GPU wants more.
_AT_ONCE = {"cpu": 2**17}
_AT_ONCE_ELSEWHERE = 2**25


def sum_of_angle_penalties(
    teacher: Tensor, student: Tensor, teacher_sides: Tensor, student_sides: Tensor, penalty: Penalty
) -> Tensor:
    """Σ over i, j, k of the penalty between the cosines of teacher and student.

    Args:
        teacher, student: Gram matrices [..., p, p] of centred points.
        teacher_sides, student_sides: [..., p, p], true where ij is a side: different points, both valid, apart.
            An angle with a side that is not taken counts as 0.
        penalty: `l2` squared error, `l1` absolute error, `smooth_l1` Huber with β=1.

    Returns:
        A scalar, differentiable once with respect to the student's Gram matrix.
    """
    shape = student.shape
    flat = (-1, *shape[-2:])
    # Autocast would take the sum of squares for a matrix product and do it in half precision.
    with torch.autocast(student.device.type, enabled=False):
        total: Tensor = _AnglePenalties.apply(
            teacher.detach().reshape(flat),
            student.reshape(flat),
            teacher_sides.reshape(flat),
            student_sides.reshape(flat),
            penalty,
        )
    return total


class _AnglePenalties(torch.autograd.Function):
    """Computes the gradient with the value: the cubes are there only then."""

    @staticmethod
    def forward(
        ctx: Any, teacher: Tensor, student: Tensor, teacher_sides: Tensor, student_sides: Tensor, penalty: Penalty
    ) -> Tensor:
        teacher_inverse, student_inverse = _inverse(teacher, teacher_sides), _inverse(student, student_sides)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[1] else None
        total = student.new_zeros(())
        points = student.shape[-1]
        step = max(1, _AT_ONCE.get(student.device.type, _AT_ONCE_ELSEWHERE) // points**3)
        for start in range(0, len(student), step):
            part = slice(start, start + step)
            cosines = _cosines(student[part], student_inverse[part])
            error = cosines - _cosines(teacher[part], teacher_inverse[part])
            total += _value(error, penalty)
            if gradient is not None:
                gradient[part] = _gradient(_slope_(error, penalty), cosines, student_inverse[part])
        ctx.gradient = gradient
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None, None, None]:
        return None, ctx.gradient * upstream, None, None, None


def _inverse(gram: Tensor, sides: Tensor) -> Tensor:
    """1/D where a side is taken, 0 elsewhere, [m, p, p]."""
    square = gram.diagonal(dim1=-2, dim2=-1)
    distance = square[:, :, None] + square[:, None, :] - 2 * gram
    return torch.where(sides, distance, 1).rsqrt() * sides


def _cosines(gram: Tensor, inverse: Tensor) -> Tensor:
    """ψ [m, p, p, p] (i, j, k) of Gram matrices and inverse distances [m, p, p]."""
    square = gram.diagonal(dim1=-2, dim2=-1)
    half = square[:, :, None] / 2 - gram
    cosines = gram[:, None, :, :] + half[:, :, :, None]
    cosines += half[:, :, None, :]
    cosines *= inverse[:, :, :, None]
    cosines *= inverse[:, :, None, :]
    return cosines


def _value(error: Tensor, penalty: Penalty) -> Tensor:
    if penalty == "l2":
        return torch.linalg.vecdot(error.flatten(), error.flatten())
    if penalty == "l1":
        return error.abs().sum()
    return torch.nn.functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum")


def _slope_(error: Tensor, penalty: Penalty) -> Tensor:
    """δ, the derivative of the penalty, in place of the error."""
    if penalty == "l2":
        return error.mul_(2)
    return error.sign_() if penalty == "l1" else error.clamp_(-1, 1)


def _gradient(slope: Tensor, cosines: Tensor, inverse: Tensor) -> Tensor:
    """dL/dG [m, p, p]; overwrites both cubes."""
    q = -inverse.square() * cosines.mul_(slope).sum(-1)
    p = slope.mul_(inverse[:, :, :, None]).mul_(inverse[:, :, None, :])
    rows = p.sum(-1)
    gradient = p.sum(1) - 2 * rows - 2 * q
    gradient.diagonal(dim1=-2, dim2=-1).add_(rows.sum(-1) + q.sum(-1) + q.sum(-2))
    return gradient
