"""A model as an ONNX graph with dynamic batch and sequence."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
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


@dataclass(frozen=True)
class Template:
    """The graph of one depth, and which parameter each of its initialisers holds.

    Nothing in it depends on the width: heads are a `-1` in a shape, everything else follows from the matrices.
    One trace, the slow part, so serves all widths.

    Attributes:
        graph: ONNX model; its weights are not anybody's.
        sources: parameter and whether it stands transposed, by initialiser.
    """

    graph: onnx.ModelProto
    sources: Mapping[str, tuple[str, bool]]

    def fill(self, model: Any) -> onnx.ModelProto:
        """The graph of a model of this depth, whatever its widths."""
        parameters = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
        filled = onnx.ModelProto()
        filled.CopyFrom(self.graph)
        for initializer in filled.graph.initializer:
            if initializer.name in self.sources:
                name, transposed = self.sources[initializer.name]
                value = parameters[name].T if transposed else parameters[name]
                initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), initializer.name))
        return filled


def trace(model: Any, names: Sequence[str]) -> Template:
    """Trace a model of one depth.

    Args:
        model: any width of the depth; it is not changed.
        names: the tokenizer's model inputs (`input_ids`, `attention_mask`, ...), which become the graph's; the
            output is `logits` [batch, outputs]. Batch and sequence are dynamic.

    Raises:
        RuntimeError: the exporter changed a parameter beyond recognition.
    """
    model = copy.deepcopy(model).eval()
    # Random weights, no two alike: each initialiser is then known by its content, and the exporter, which merges
    # equal tensors and drops a bias of zeros, finds none.
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    graph = _export(model, names)
    sources = _sources(graph, model)
    lost = {name for name, _ in model.named_parameters()} - {name for name, _ in sources.values()}
    if lost:
        raise RuntimeError(f"the ONNX exporter changed {len(lost)} parameters beyond recognition: {sorted(lost)}")
    # Shapes that the exporter noted hold the width of this model.
    del graph.graph.value_info[:]
    return Template(graph, sources)


def _sources(graph: onnx.ModelProto, model: Any) -> dict[str, tuple[str, bool]]:
    """Find each parameter among the initialisers, as it is or transposed."""
    known: dict[tuple[tuple[int, ...], bytes], tuple[str, bool]] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        if value.ndim == 2:
            known[value.T.shape, value.T.tobytes()] = (name, True)
        known[value.shape, value.tobytes()] = (name, False)
    found = {}
    for initializer in graph.graph.initializer:
        value = numpy_helper.to_array(initializer)
        source = known.get((value.shape, value.tobytes()))
        if source:
            found[initializer.name] = source
    return found


def _export(model: Any, names: Sequence[str]) -> onnx.ModelProto:
    # No dimension of the example may be 1: the exporter would take it for a constant.
    example = tuple(torch.ones(2, 8, dtype=torch.long) for _ in names)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    model.set_attn_implementation("eager")
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
    assert program is not None
    return program.model_proto


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
