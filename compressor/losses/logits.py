"""Losses on the outputs of a classification or regression head: [B, labels] or [B, 1]."""

from torch import Tensor
from torch.nn import functional


def soft_cross_entropy(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-Σ softmax(t/T) · log softmax(s/T), mean over the batch.

    As in DynaBERT and in the CKD code: no factor T², and the teacher's entropy is not subtracted, so that the
    loss of a perfect student is the entropy and not 0.

        L = -Σ softmax(t / T) log softmax(s / T) / B

    Args:
        teacher: logits [B, labels]; no gradient flows into them.
        student: logits [B, labels].

    Example:
        >>> import torch
        >>> round(soft_cross_entropy(torch.zeros(4, 2), torch.zeros(4, 2)).item(), 4)
        0.6931
    """
    target = (teacher.detach().float() / temperature).softmax(-1)
    return -(target * (student.float() / temperature).log_softmax(-1)).sum(-1).mean()


def regression(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean squared error of the outputs over T (CKD code). DynaBERT's code sets it to 0, which leaves the head
    untrained as soon as hidden states are compared by relations only.

    Args:
        teacher: outputs [B, 1]; no gradient flows into them.
        student: outputs [B, 1].

    Example:
        >>> import torch
        >>> regression(torch.ones(4, 1), torch.zeros(4, 1), temperature=2.0).item()
        0.25
    """
    return functional.mse_loss(student.float() / temperature, teacher.detach().float() / temperature)
