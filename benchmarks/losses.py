"""Forward and backward of each relation against difference vectors, interleaved in one run.

    .venv/bin/python benchmarks/losses.py
    .venv/bin/python benchmarks/losses.py --lengths 64 --hidden 384 --states 7 --batch 32 --terms word_angle_21
    .venv/bin/python benchmarks/losses.py --of-a-step

Prints seconds and the most that a pass allocates, both as ratios, how far the gradients are apart, and the exponents
with which compressor's time grows. The plain implementation forms the vectors x_j - x_i themselves, as the authors'
code does, with the same masks and normalisation; where it would need more than --memory GiB for one text it is left
out, and the batch is as large as that allows. `--of-a-step` compares all four terms with a step of the model instead.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from memory import peak_bytes
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from compressor import losses
from compressor.losses import relations
from compressor.losses.geometry import Geometry

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
WINDOW = 21


def plain_pair(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Points [..., p, d], mask [..., p]; cosines need no difference vectors in the authors' code either."""
    pairs = _pairs(mask)
    logs = []
    for points in (teacher, student):
        direction = functional.normalize(points, dim=-1)
        cosines = direction @ direction.transpose(-1, -2)
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


def plain_window(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Points [..., p, d], mask [..., p]; neighbours of each point are gathered."""
    points = student.shape[-2]
    places = torch.arange(points)[:, None] + torch.arange(-(WINDOW // 2), WINDOW // 2 + 1)
    near, valid = places.clamp(0, points - 1), mask.bool()
    cosines = []
    for states in (teacher, student):
        sides = functional.normalize(states[..., near, :] - states[..., :, None, :], dim=-1)
        cosines.append(sides @ sides.transpose(-1, -2))
    inside = (places >= 0) & (places < points) & (places != torch.arange(points)[:, None])
    taken = inside & valid[..., :, None] & valid[..., near]
    triples = taken[..., :, None] & taken[..., None, :] & ~torch.eye(WINDOW, dtype=torch.bool)
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


# compressor's, the plain one, and the numbers of the vectors that the plain one forms for one text.
TERMS: dict[str, tuple[Loss, Loss, Callable[[int, int, int], int]]] = {
    "word_pair": (losses.word_pair, by_word(plain_pair), lambda n, d, states: states * n * d),
    "word_angle": (losses.word_angle, by_word(plain_angle), lambda n, d, states: states * n * n * d),
    "word_angle_21": (
        partial(losses.word_angle, window=WINDOW),
        by_word(plain_window),
        lambda n, d, states: states * n * WINDOW * d,
    ),
    "layer_pair": (losses.layer_pair, by_layer(plain_pair), lambda n, d, states: n * states * d),
    "layer_angle": (losses.layer_angle, by_layer(plain_angle), lambda n, d, states: n * states * states * d),
}
# Copies of the difference vectors that a plain pass holds at a time.
_COPIES = 8


def inputs(batch: int, states: int, length: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher, student and mask; the last third of every second text is padding."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, states, length, hidden)
    teacher = torch.randn(shape, generator=generator)
    mask = torch.ones(batch, length)
    mask[1::2, length - length // 3 :] = 0
    return teacher, teacher + torch.randn(shape, generator=generator), mask


def gradient(loss: Loss, teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Forward and backward."""
    student = student.detach().requires_grad_()
    loss(teacher, student, mask).backward()
    assert student.grad is not None
    return student.grad


def seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, in turn, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for place in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if place:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def compare(options: argparse.Namespace) -> None:
    """One row for each term and shape, then the exponents."""
    print(f"{torch.get_num_threads()} threads, median of {options.rounds} rounds")
    print(
        f"{'term':14s} {'n':>4s} {'d':>4s} {'L':>3s} {'B':>3s} {'plain':>9s} {'compressor':>10s} {'faster':>8s} "
        f"{'plain':>10s} {'compressor':>10s} {'smaller':>8s} {'gradient':>9s}"
    )
    times: dict[str, dict[tuple[int, int, int], float]] = {}
    for name in options.terms:
        ours, plain, numbers = TERMS[name]
        for states in options.states:
            for hidden in options.hidden:
                for length in options.lengths:
                    one_text = 4 * _COPIES * numbers(length, hidden, states)
                    batch = min(options.batch, int(options.memory * 2**30 / one_text))
                    data = inputs(max(batch, 1), states, length, hidden)
                    calls: dict[str, Callable[[], Tensor]] = {"ours": partial(gradient, ours, *data)}
                    if batch:
                        calls["plain"] = partial(gradient, plain, *data)
                    taken = seconds(dict(calls), options.rounds)
                    memory = {kind: peak_bytes(call, torch.device("cpu")) for kind, call in calls.items()}
                    times.setdefault(name, {})[length, hidden, states] = taken["ours"] / max(batch, 1)
                    print(_row(name, (length, hidden, states, max(batch, 1)), taken, memory, calls), flush=True)
    _print_exponents(times, options)


def _row(
    name: str,
    shape: tuple[int, int, int, int],
    taken: dict[str, float],
    memory: dict[str, int],
    calls: dict[str, Callable[[], Tensor]],
) -> str:
    length, hidden, states, batch = shape
    start = f"{name:14s} {length:4d} {hidden:4d} {states:3d} {batch:3d} "
    ours = f"{1000 * taken['ours']:7.1f} ms"
    if "plain" not in calls:
        return f"{start}{'-':>9s} {ours} {'-':>8s} {'-':>10s} {memory['ours'] / 2**20:6.0f} MiB {'-':>8s} {'-':>9s}"
    expected, found = calls["plain"](), calls["ours"]()
    apart = ((found - expected).abs().max() / expected.abs().max()).item()
    return (
        f"{start}{1000 * taken['plain']:6.0f} ms {ours} {taken['plain'] / taken['ours']:7.1f}x "
        f"{memory['plain'] / 2**20:6.0f} MiB {memory['ours'] / 2**20:6.0f} MiB "
        f"{memory['plain'] / memory['ours']:7.1f}x {apart:9.1e}"
    )


def _print_exponents(times: dict[str, dict[tuple[int, int, int], float]], options: argparse.Namespace) -> None:
    """Slopes of log time over log n and log L."""
    for name, found in times.items():
        words = []
        if len(options.lengths) > 1:
            fixed = (options.hidden[0], options.states[0])
            words.append(f"n^{_slope({n: found[n, *fixed] for n in options.lengths}):.2f}")
        if len(options.states) > 1:
            fixed = (options.lengths[-1], options.hidden[0])
            words.append(f"L^{_slope({states: found[*fixed, states] for states in options.states}):.2f}")
        if words:
            print(f"{name}: compressor's seconds for a text grow as {', '.join(words)}")


def _slope(values: dict[int, float]) -> float:
    return float(np.polyfit([math.log(x) for x in values], [math.log(y) for y in values.values()], 1)[0])


def compare_with_a_step(options: argparse.Namespace) -> None:
    """The four terms against forward and backward of a 6-layer, 384-wide BERT: 32 texts of 64 words."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=30522
    )
    model = BertForSequenceClassification(config)
    teacher, student, mask = inputs(32, 7, 64, 384)
    ids = torch.randint(5, 30000, (32, 64))

    def step() -> None:
        model(input_ids=ids, attention_mask=mask.long()).logits.sum().backward()
        model.zero_grad()

    def four(window: int | None, known: bool) -> Callable[[], object]:
        taught = Geometry(teacher, mask)

        def call() -> None:
            states = student.detach().requires_grad_()
            side, own = taught if known else Geometry(teacher, mask), Geometry(states, mask)
            pairs = relations.pair_divergence(side.words, own.words, "valid")
            pairs = pairs + relations.pair_divergence(side.layers, own.layers, "valid")
            angles = relations.angle(side.words, own.words, "valid", "l2", window)
            (pairs + angles + relations.angle(side.layers, own.layers, "valid", "l2")).backward()

        return call

    calls = {
        "model": step,
        "four terms": four(None, known=False),
        "four terms, window 21": four(WINDOW, known=False),
        "four terms, teacher's known": four(None, known=True),
        "four terms, window 21, teacher's known": four(WINDOW, known=True),
    }
    taken = seconds(calls, options.rounds)
    for name in list(calls)[1:]:
        print(f"{name}: {100 * taken[name] / taken['model']:.1f}% of a forward and backward pass of the model")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terms", nargs="+", choices=TERMS, default=list(TERMS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--hidden", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--states", type=int, nargs="+", default=[7, 13])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--memory", type=float, default=6.0, help="GiB that the plain implementation may take")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--of-a-step", action="store_true")
    options = parser.parse_args()
    if options.of_a_step:
        compare_with_a_step(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
