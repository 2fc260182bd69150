"""Forward and backward of each relation against difference vectors, interleaved in one run.

    .venv/bin/python benchmarks/losses.py --length 64 --rounds 3

Prints seconds, their ratio, and the largest difference of the gradients. The plain implementation forms the vectors
x_j - x_i themselves, as the authors' code does, with the same masks and normalisation.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from compressor import losses

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_pair(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Points [..., p, d], mask [..., p]."""
    pairs = _pairs(mask)
    logs = []
    for points in (teacher, student):
        cosines = functional.cosine_similarity(points[..., :, None, :], points[..., None, :, :], dim=-1)
        logs.append(cosines.masked_fill(~pairs, -1e4).log_softmax(-1))
    return torch.where(pairs, logs[0].exp() * (logs[0] - logs[1]), 0).sum() / pairs.sum()


def plain_angle(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Points [..., p, d], mask [..., p]."""
    pairs = _pairs(mask)
    cosines = []
    for points in (teacher, student):
        sides = functional.normalize(points[..., None, :, :] - points[..., :, None, :], dim=-1)
        cosines.append(sides @ sides.transpose(-1, -2))
    triples = pairs[..., :, :, None] & pairs[..., :, None, :] & pairs[..., None, :, :]
    return torch.where(triples, (cosines[1] - cosines[0]).square(), 0).sum() / triples.sum()


def _pairs(mask: Tensor) -> Tensor:
    valid = mask.bool()
    return valid[..., :, None] & valid[..., None, :] & ~torch.eye(mask.shape[-1], dtype=torch.bool)


def by_word(loss: Loss) -> Loss:
    """A loss over groups as one over the words of each state."""
    return lambda t, s, mask: loss(t, s, mask[:, None, :].expand(s.shape[:3]))


def by_layer(loss: Loss) -> Loss:
    """A loss over groups as one over the states of each word."""
    return lambda t, s, mask: loss(
        t.transpose(1, 2), s.transpose(1, 2), mask[:, :, None].expand(s.shape[0], s.shape[2], s.shape[1])
    )


PAIRS: dict[str, tuple[Loss, Loss]] = {
    "word_pair": (losses.word_pair, by_word(plain_pair)),
    "word_angle": (losses.word_angle, by_word(plain_angle)),
    "layer_pair": (losses.layer_pair, by_layer(plain_pair)),
    "layer_angle": (losses.layer_angle, by_layer(plain_angle)),
}


def timed(loss: Loss, teacher: Tensor, student: Tensor, mask: Tensor) -> tuple[float, Tensor]:
    """Seconds of forward and backward, and the gradient."""
    student = student.detach().requires_grad_()
    start = time.perf_counter()
    loss(teacher, student, mask).backward()
    assert student.grad is not None
    return time.perf_counter() - start, student.grad


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--states", type=int, default=7)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = (options.batch, options.states, options.length, options.hidden)
    teacher, student = torch.randn(shape), torch.randn(shape)
    mask = torch.ones(options.batch, options.length)
    mask[0, options.length // 2 :] = 0
    print(f"B, L, n, d = {shape}, {torch.get_num_threads()} threads, median of {options.rounds} rounds")
    print(f"{'':12s} {'differences':>12s} {'compressor':>12s} {'ratio':>7s} {'gradient differs by':>20s}")
    for name, (ours, plain) in PAIRS.items():
        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(options.rounds):
            time_plain, expected = timed(plain, teacher, student, mask)
            time_ours, found = timed(ours, teacher, student, mask)
            seconds["plain"].append(time_plain)
            seconds["ours"].append(time_ours)
        before, now = (statistics.median(seconds[kind]) for kind in ("plain", "ours"))
        difference = ((found - expected).abs().max() / expected.abs().max()).item()
        print(f"{name:12s} {before:10.3f} s {now:10.3f} s {before / now:6.1f}x {difference:20.1e}")


if __name__ == "__main__":
    main()
