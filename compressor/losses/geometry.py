"""How the hidden states of one model stand to each other: Gram matrices, from which every relation is read.

Shapes: B sentences, L matched states (the embeddings count as one), n tokens, d hidden. A *group* is a set of p points
that are related to each other: the n words of one state, or the L states of one word.

Points are centred before their products are taken, for BERT's upper layers share so large a mean that its square would
drown the differences in float32. Angles and distances do not change by that; for cosines the mean is added again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

T = TypeVar("T")


class _Once(Generic[T]):
    """A property that is computed once; functools' has a lock before Python 3.12, which torch.compile cannot trace."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self._name = compute, compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, instance: Any, owner: type) -> T:
        value = self._compute(instance)
        # Found there from now on, before this is asked.
        instance.__dict__[self._name] = value
        return value


@dataclass(frozen=True)
class Group:
    """Products of points, and what is derived from them, each computed once.

    Attributes:
        gram: of the centred points, [..., p, p].
        shift: product of each centred point with the mean, [..., p].
        mean: product of the mean with itself, [...].
        valid: points that are no padding, [..., p].
        temperature: of the softmax over cosines.
    """

    gram: Tensor
    shift: Tensor
    mean: Tensor
    valid: Tensor
    temperature: float

    @_Once
    def different(self) -> Tensor:
        """[p, p], true where two points differ."""
        return ~torch.eye(self.gram.shape[-1], dtype=torch.bool, device=self.gram.device)

    @_Once
    def pairs(self) -> Tensor:
        """[..., p, p], true where two different points are both valid."""
        return self.valid[..., :, None] & self.valid[..., None, :] & self.different

    @_Once
    def apart(self) -> Tensor:
        """[..., p, p], true where two points have a distance that is not lost in rounding: D² > eps (s_i + s_j)."""
        gram = self.gram.detach()
        square = gram.diagonal(dim1=-2, dim2=-1)
        sums = square[..., :, None] + square[..., None, :]
        return (sums * (1 - _rounding(gram)) - torch.finfo(gram.dtype).tiny > 2 * gram) & self.different

    @_Once
    def squared_distances(self) -> Tensor:
        """D², [..., p, p], exactly 0 on the diagonal."""
        square = self.gram.diagonal(dim1=-2, dim2=-1)
        distance = (square[..., :, None] + square[..., None, :] - 2 * self.gram).clamp(min=0)
        return distance * self.different

    @_Once
    def cosines(self) -> Tensor:
        """Of the points as they were before centring, [..., p, p]; 0 for a point of no length."""
        half = self.shift + self.mean[..., None] / 2
        square = self.gram.diagonal(dim1=-2, dim2=-1)
        length = square + 2 * half
        some = length.detach() > _rounding(length) * (square.detach() + self.mean[..., None])
        inverse = torch.where(some, torch.where(some, length, 1).rsqrt(), 0)
        return (self.gram + half[..., :, None] + half[..., None, :]) * inverse[..., :, None] * inverse[..., None, :]

    @_Once
    def log_shares(self) -> Tensor:
        """Log-softmax of cosines over the other valid points of a row, [..., p, p]; meaningless off `pairs`."""
        scaled = self.cosines if self.temperature == 1 else self.cosines / self.temperature
        return scaled.masked_fill(~self.pairs, -1e4).log_softmax(-1)

    @_Once
    def shares(self) -> Tensor:
        """The softmax itself, 0 off `pairs`."""
        return self.log_shares.exp().masked_fill(~self.pairs, 0)


def _rounding(values: Tensor) -> float:
    return 1e-6 if values.dtype == torch.float32 else 1e-12


class Geometry:
    """The relations of one model's states, computed when somebody asks for them, and once.

    Args:
        states: [B, L, n, d]; computed with in at least float32.
        mask: [B, n], 1 for words (with [CLS] and [SEP]), 0 for padding.
        temperature: of the softmax over cosines.
    """

    def __init__(self, states: Tensor, mask: Tensor, temperature: float = 1.0) -> None:
        self.states = states.to(torch.promote_types(states.dtype, torch.float32))
        self.mask = mask.bool()
        self._temperature = temperature

    @_Once
    def words(self) -> Group:
        """Groups [B, L] of the n words of one state."""
        words = self.mask.to(self.states.dtype)
        share = words / words.sum(1, keepdim=True).clamp(min=1)
        mean = _full_precision(torch.matmul, share[:, None, None, :], self.states.detach())
        valid = self.mask[:, None, :].expand(self.states.shape[:3])
        return _group(self.states, mean, valid, self._temperature)

    @_Once
    def layers(self) -> Group:
        """Groups [B, n] of the L states of one word."""
        points = self.states.transpose(1, 2)
        valid = self.mask[:, :, None].expand(points.shape[:3])
        return _group(points, points.detach().mean(-2, keepdim=True), valid, self._temperature)

    def select(self, chosen: Sequence[int]) -> "Geometry":
        """That of some of the states, in their order; products that are there are not computed again."""
        if tuple(chosen) == tuple(range(self.states.shape[1])):
            return self
        return _Selected(self, list(chosen))


class _Selected(Geometry):
    def __init__(self, whole: Geometry, chosen: list[int]) -> None:
        self._whole, self._chosen = whole, chosen
        self.mask = whole.mask

    @_Once
    def states(self) -> Tensor:
        return self._whole.states[:, self._chosen]

    @_Once
    def words(self) -> Group:
        whole, chosen = self._whole.words, self._chosen
        gram, shift, mean = whole.gram[:, chosen], whole.shift[:, chosen], whole.mean[:, chosen]
        return Group(gram, shift, mean, whole.valid[:, chosen], whole.temperature)

    @_Once
    def layers(self) -> Group:
        whole, chosen = self._whole.layers, self._chosen
        gram = whole.gram[..., chosen, :][..., chosen]
        return Group(gram, whole.shift[..., chosen], whole.mean, whole.valid[..., chosen], whole.temperature)


def _group(points: Tensor, mean: Tensor, valid: Tensor, temperature: float) -> Group:
    gram, shift = _full_precision(_Products.apply, points, mean)
    return Group(gram, shift, mean.square().sum((-2, -1)), valid, temperature)


def _full_precision(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Autocast would do matrix products in half precision."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        return function(*tensors)


class _Products(torch.autograd.Function):
    """Products of centred points: with each other [..., p, p], and with the mean [..., p].

    The mean counts as a constant: together the products do not depend on it, whatever is made of them here.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        count = points.shape[-2]
        # The mean is one point more, so that one product gives both. Points may be a transposed view; this is not.
        centred = points.new_empty(*points.shape[:-2], count + 1, points.shape[-1])
        centred[..., :-1, :].copy_(points).sub_(mean)
        centred[..., -1:, :] = mean
        ctx.save_for_backward(centred)
        products = centred[..., :-1, :] @ centred.mT
        return products[..., :-1].contiguous(), products[..., -1].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_gram: Tensor | None, of_shift: Tensor | None) -> tuple[Tensor | None, None]:
        (centred,) = ctx.saved_tensors
        if of_gram is None:
            return None if of_shift is None else of_shift[..., None] * centred[..., -1:, :], None
        both = of_gram + of_gram.mT
        if of_shift is None:
            return both @ centred[..., :-1, :], None
        return torch.cat([both, of_shift[..., None]], -1) @ centred, None
