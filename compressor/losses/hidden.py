"""DynaBERT's objective on hidden states."""

import torch
from torch import Tensor

from compressor.losses.relations import Normalization


def hidden_mse(teacher: Tensor, student: Tensor, mask: Tensor, *, normalization: Normalization = "valid") -> Tensor:
    """Σ over the L states of the mean squared error (DynaBERT's embedding and hidden losses).

        L = Σ_l mean over words i of ‖s_li - t_li‖² / d

    Unlike relations it pins the coordinates of every state, and needs equal widths. It sums over states where relations
    are means, so that equal weights do not mean equal strength: DynaBERT's code weighs it 0.1 and 1.0.

    Args:
        teacher: hidden states [B, L, n, d]; no gradient flows into them.
        student: hidden states [B, L, n, d], of the teacher's width.
        mask: [B, n], 1 for words, 0 for padding.
        normalization: `valid` averages over words, `reference` over padding too, as the authors' code does.

    Raises:
        ValueError: the widths differ; relations have no such limit.

    Example:
        >>> states = torch.randn(2, 3, 7, 8)
        >>> hidden_mse(states, states + 1, torch.ones(2, 7)).round().item()
        3.0
    """
    if teacher.shape != student.shape:
        raise ValueError(
            f"hidden_mse needs equal shapes; teacher {tuple(teacher.shape)}, student {tuple(student.shape)}"
        )
    precision = torch.promote_types(student.dtype, torch.float32)
    error = (student.to(precision) - teacher.detach().to(precision)).square().mean(-1).sum(1)
    if normalization == "reference":
        return error.mean()
    words = mask.to(error.dtype)
    return (error * words).sum() / words.sum().clamp(min=1)
