"""A model as an ONNX graph with dynamic batch and sequence."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Opset 18 with plain attention was the fastest form that ONNX Runtime 1.32 ran of those tried (18 with sdpa, 23).
OPSET = 18


class _Logits(nn.Module):
    """Positional tensors in, logits out: what a graph has for inputs and outputs."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def export_graph(model: Any, path: Path, names: Sequence[str]) -> None:
    """Write a classifier as ONNX.

    Args:
        model: in eval mode.
        path: of the file.
        names: the tokenizer's model inputs (`input_ids`, `attention_mask`, ...), which become the graph's; the
            output is `logits` [batch, outputs].
    """
    # No dimension of the example may be 1: the exporter would take it for a constant.
    example = tuple(torch.ones(2, 8, dtype=torch.long) for _ in names)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with warnings.catch_warnings(), no_log_below(logging.ERROR, "torch.onnx", "torch.export", "onnxscript"):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Logits(model, names).eval(),
                example,
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=((dynamic,) * len(names),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        model.set_attn_implementation(implementation)
    assert program is not None
    program.save(path)


@contextmanager
def no_log_below(level: int, *names: str | None) -> Iterator[None]:
    """Raise the level of some loggers while the block runs; None is the root logger."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)
