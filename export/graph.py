"""A super-network as one ONNX graph with dynamic batch and sequence, and the graphs of its depths."""

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from compressor.supernet.supernetwork import SuperNetwork

# The first with Gelu as an operator of its own.
OPSET = 20
# Operators of the template alone, which no runtime has.
# Linear(x [..., K], weight [N, K], bias [N] or none) -> [..., N].
LINEAR = "Linear"
# State(x) -> x: the hidden state that stands behind as many layers as its number says.
_STATE = "State"
# A parameter that stands for the state of a number while the model is traced.
_MARKER = "states."


@dataclass(frozen=True)
class Template:
    """The graph of a super-network without its weights.

    Nothing in it depends on the width: heads are a `-1` in a shape, everything else follows from the matrices.
    One trace, the slow part, so serves all sizes.

    Attributes:
        nodes: in order; products with a parameter are `Linear`, and parameters stand under the super-network's names.
        constants: initialisers that are no parameters.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    constants: tuple[onnx.TensorProto, ...]

    def of(self, kept: Collection[int]) -> "Template":
        """The graph of some of the layers (from 0): what reads a layer that was dropped, reads that layer's input."""
        instead: dict[str, str] = {}
        before = ""
        nodes = []
        for node in self.nodes:
            node = _reading(node, instead)
            if node.op_type == _STATE:
                # The first state stands before all layers.
                layer = helper.get_node_attr_value(node, "number") - 1
                before = node.input[0] if layer < 0 or layer in kept else before
                instead[node.output[0]] = before
            else:
                nodes.append(node)
        return replace(self, nodes=tuple(nodes)).pruned()

    def pruned(self) -> "Template":
        """Without what no output needs."""
        wanted = {output.name for output in self.outputs}
        nodes = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                nodes.append(node)
        constants = tuple(tensor for tensor in self.constants if tensor.name in wanted)
        return replace(self, nodes=tuple(reversed(nodes)), constants=constants)


def trace(supernet: SuperNetwork, names: Sequence[str]) -> Template:
    """Trace a super-network.

    Args:
        names: the tokenizer's model inputs (`input_ids`, `attention_mask`, ...), which become the graph's; the
            output is `logits` [batch, outputs]. Batch and sequence are dynamic.

    Raises:
        RuntimeError: the exporter changed a parameter beyond recognition.
    """
    model = copy.deepcopy(supernet.model).eval()
    traced = _Traced(model, model.base_model.get_submodule(supernet.architecture.layers), names)
    # Random weights, no two alike: each initialiser is then known by its content, and the exporter, which merges
    # equal tensors and drops a bias of zeros, finds none.
    generator = torch.Generator().manual_seed(0)
    for parameter in traced.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    graph = _export(traced, names)
    sources = _sources(graph, traced)
    lost = {_name(name) for name, _ in traced.named_parameters()} - {name for name, _ in sources.values()}
    if lost:
        raise RuntimeError(f"the ONNX exporter changed {len(lost)} parameters beyond recognition: {sorted(lost)}")
    constants = tuple(tensor for tensor in graph.initializer if tensor.name not in sources)
    nodes = tuple(_readable(graph.node, sources))
    return Template(nodes, tuple(graph.input), tuple(graph.output), constants).pruned()


class _Traced(nn.Module):
    """Positional tensors in, logits out, and in between an addition that marks every hidden state."""

    def __init__(self, model: Any, layers: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.states = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(len(layers) + 1))
        layers[0].register_forward_pre_hook(lambda _, inputs: (inputs[0] + self.states[0], *inputs[1:]))
        for number, layer in enumerate(layers, start=1):
            layer.register_forward_hook(lambda _, __, output, number=number: self._marked(output, number))

    def _marked(self, output: Any, number: int) -> Any:
        if isinstance(output, tuple):
            return (output[0] + self.states[number], *output[1:])
        return output + self.states[number]

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        # What attention adds to its scores. Left to make it, transformers traces into twenty nodes.
        masked = 1.0 - given["attention_mask"][:, None, None, :].to(self.model.dtype)
        given["attention_mask"] = masked * torch.finfo(self.model.dtype).min
        return self.model(**given).logits


def _export(traced: _Traced, names: Sequence[str]) -> onnx.GraphProto:
    # No dimension of the example may be 1: the exporter would take it for a constant.
    example = tuple(torch.ones(2, 8, dtype=torch.long) for _ in names)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    traced.model.set_attn_implementation("eager")
    with warnings.catch_warnings(), _no_log_below(logging.ERROR, "torch.onnx", "torch.export", "onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            traced.eval(),
            example,
            input_names=list(names),
            output_names=["logits"],
            dynamic_shapes=((dynamic,) * len(names),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto.graph


def _sources(graph: onnx.GraphProto, traced: _Traced) -> dict[str, tuple[str, bool]]:
    """The parameter of each initialiser, and whether it stands transposed."""
    known: dict[tuple[tuple[int, ...], bytes], tuple[str, bool]] = {}
    for name, parameter in traced.named_parameters():
        value, name = parameter.detach().numpy(), _name(name)
        if value.ndim == 2:
            known[value.T.shape, value.T.tobytes()] = (name, True)
        known[value.shape, value.tobytes()] = (name, False)
    found = {}
    for initializer in graph.initializer:
        value = numpy_helper.to_array(initializer)
        source = known.get((value.shape, value.tobytes()))
        if source:
            found[initializer.name] = source
    return found


def _name(traced: str) -> str:
    """A parameter's name in the super-network, for that in the traced module."""
    return traced.removeprefix("model.")


def _readable(nodes: Iterable[onnx.NodeProto], sources: dict[str, tuple[str, bool]]) -> list[onnx.NodeProto]:
    """Nodes in the template's own terms: parameters by name, `Linear` and `State`."""
    read: list[onnx.NodeProto] = []
    products: dict[str, onnx.NodeProto] = {}
    nodes = list(nodes)
    uses = Counter(name for node in nodes for name in node.input)
    for node in nodes:
        transposed = {name: sources[name][1] for name in node.input if name in sources}
        node = _reading(node, {name: sources[name][0] for name in transposed})
        product = _linear(node, list(transposed.values()))
        marker = next((name for name in node.input if name.startswith(_MARKER)), None)
        biased = next((name for name in node.input if name in products and uses[name] == 1), None)
        if product:
            products[product.output[0]] = product
            read.append(product)
        elif marker:
            state = next(name for name in node.input if name != marker)
            read.append(helper.make_node(_STATE, [state], node.output, number=int(marker.removeprefix(_MARKER))))
        elif node.op_type == "Add" and biased and transposed:
            # Behind its product, which is put together with it.
            matrix = products.pop(biased)
            matrix.input.append(next(name for name in node.input if name != biased))
            matrix.output[0] = node.output[0]
        elif any(transposed.values()):
            raise RuntimeError(f"{node.op_type} reads a transposed parameter: {list(node.input)}")
        else:
            read.append(node)
    return read


def _linear(node: onnx.NodeProto, transposed: list[bool]) -> onnx.NodeProto | None:
    """A product with a parameter as a Linear; what `Gemm` multiplies has two dimensions."""
    if node.op_type == "MatMul" and transposed == [True]:
        return helper.make_node(LINEAR, node.input, node.output, two_dimensional=0)
    if node.op_type == "Gemm" and transposed and transposed[0] != helper.get_node_attr_value(node, "transB"):
        return helper.make_node(LINEAR, node.input, node.output, two_dimensional=1)
    return None


def _reading(node: onnx.NodeProto, instead: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node that reads other tensors."""
    return copied(node, [instead.get(name, name) for name in node.input], node.output)


def copied(node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    """The same operation between other tensors, without the exporter's notes."""
    changed = helper.make_node(node.op_type, inputs, outputs, domain=node.domain)
    changed.attribute.extend(node.attribute)
    return changed


@contextmanager
def _no_log_below(level: int, *names: str) -> Iterator[None]:
    """Raise the level of some loggers while the block runs."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)
