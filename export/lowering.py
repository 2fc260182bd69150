"""The template's operators as those that ONNX Runtime runs: in fp32, or with int8 matrices."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compressor.export.graph import LINEAR, OPSET, Template, copied
from compressor.export.weights import ROW, SCALE, TRANSPOSED, ZERO

MICROSOFT = "com.microsoft"
# What treats every row alike, so that it does not matter how many dimensions stand before the last one.
_ROW_BY_ROW = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Sqrt",
    "Erf",
    "Gelu",
    "Tanh",
    "Sigmoid",
    "Relu",
    "LayerNormalization",
}


@dataclass(frozen=True)
class Storage:
    """How the parameters that a graph reads are stored.

    Attributes:
        transposed: matrices that sizes take leading columns of; as [K, N] these lie together, as the leading rows
            of the others do.
        int8: matrices [N, K] that are stored as int8 with a scale for each of their N rows.
        vectors: parameters of one dimension.
    """

    transposed: Collection[str]
    int8: Collection[str]
    vectors: Collection[str]

    def name(self, parameter: str) -> str:
        """The name of the stored tensor."""
        return parameter + TRANSPOSED if parameter in self.transposed else parameter


def lower(template: Template, storage: Storage) -> Template:
    """A template whose nodes a runtime has, and which reads stored tensors.

    Between attentions the states are kept as [batch x sequence, width]: that is what `Gemm` and `QGemm` take, with
    matrices as they are stored, and ONNX Runtime then leaves LayerNormalization alone, whose fusion with the
    addition before it is several times slower than both.
    """
    lowering = _Lowering(template, storage)
    for node in template.nodes:
        lowering.add(node)
    for output in template.outputs:
        lowering.whole(output.name)
    constants = (*template.constants, numpy_helper.from_array(np.array([-1]), _REST))
    return Template(tuple(lowering.nodes), template.inputs, template.outputs, constants).pruned()


_REST = "lowering.rest"
_FLAT_SHAPE, _WHOLE_SHAPE = "lowering.flat_shape", "lowering.whole_shape"


class _Lowering:
    def __init__(self, template: Template, storage: Storage) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._storage = storage
        self._flat: dict[str, str] = {}
        self._only_flat: set[str] = set()
        self._reshaped: dict[str, str] = {}
        self._quantised: dict[str, list[str]] = {}
        self._vectors = {tensor.name for tensor in template.constants if len(tensor.dims) < 2} | set(storage.vectors)
        self._emit("Shape", [template.inputs[0].name], ["lowering.shape"])
        self._emit("ReduceProd", ["lowering.shape"], ["lowering.rows"])
        self._emit("Concat", ["lowering.rows", _REST], [_FLAT_SHAPE], axis=0)
        self._emit("Concat", ["lowering.shape", _REST], [_WHOLE_SHAPE], axis=0)

    def add(self, node: onnx.NodeProto) -> None:
        """Add what computes the outputs of a node of the template."""
        if node.op_type == LINEAR:
            self._linear(node)
        elif node.op_type == "Gather" and node.input[0] in self._storage.int8:
            self._look_up(node)
        elif self._row_by_row(node):
            inputs = [self._flat.get(name, name) for name in node.input]
            self.nodes.append(copied(node, inputs, [self._made_flat(node.output[0])]))
        elif node.op_type == "Reshape":
            # Where a shape is asked for, it does not matter which one was there.
            source = self._flat.get(node.input[0], node.input[0])
            self._reshaped[node.output[0]] = source
            self.nodes.append(copied(node, [source, node.input[1]], node.output))
        else:
            self.nodes.append(copied(node, [self.whole(name) for name in node.input], node.output))

    def whole(self, name: str) -> str:
        """A tensor [batch, sequence, width] that may exist as [batch x sequence, width] alone so far."""
        if name in self._only_flat:
            self._only_flat.discard(name)
            self._emit("Reshape", [self._flat[name], _WHOLE_SHAPE], [name])
        return name

    def _flattened(self, name: str) -> str:
        if name not in self._flat:
            self._flat[name] = f"{name}.flat"
            self._emit("Reshape", [self._reshaped.get(name, name), _FLAT_SHAPE], [self._flat[name]])
        return self._flat[name]

    def _made_flat(self, name: str) -> str:
        self._flat[name] = f"{name}.flat"
        self._only_flat.add(name)
        return self._flat[name]

    def _row_by_row(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in _ROW_BY_ROW or not any(name in self._flat for name in node.input):
            return False
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
        return axis == -1 and all(name in self._flat or name in self._vectors for name in node.input)

    def _linear(self, node: onnx.NodeProto) -> None:
        two_dimensional = helper.get_node_attr_value(node, "two_dimensional")
        states, weight, *bias = node.input
        rows = self.whole(states) if two_dimensional else self._flattened(states)
        output = node.output[0] if two_dimensional else self._made_flat(node.output[0])
        product = self._int8_product if weight in self._storage.int8 else self._product
        product(rows, weight, bias, output)

    def _product(self, rows: str, weight: str, bias: list[str], output: str) -> None:
        as_pytorch = weight not in self._storage.transposed
        self._emit("Gemm", [rows, self._storage.name(weight), *bias], [output], transB=int(as_pytorch))

    def _int8_product(self, rows: str, weight: str, bias: list[str], output: str) -> None:
        stored, scale = self._storage.name(weight), weight + SCALE
        if weight in self._storage.transposed:
            self._emit("DynamicQuantizeMatMul", [rows, stored, scale, "", *bias], [output], domain=MICROSOFT)
            return
        # Query, key and value read the same states, which are quantised once.
        if rows not in self._quantised:
            self._quantised[rows] = [f"{rows}.{part}" for part in ("int8", "scale", "zero")]
            self._emit("DynamicQuantizeLinear", [rows], self._quantised[rows])
        product = f"{output}.product" if bias else output
        inputs = [*self._quantised[rows], stored, scale, weight + ZERO]
        self._emit("QGemm", inputs, [product], domain=MICROSOFT, transB=1)
        if bias:
            # [N] would be fused with a Gelu behind it into an operator that is slower than both.
            self._emit("Add", [product, bias[0] + ROW], [output])

    def _look_up(self, node: onnx.NodeProto) -> None:
        table, ids = node.input
        output = node.output[0]
        self._emit("Gather", [table, ids], [f"{output}.int8"])
        self._emit("Cast", [f"{output}.int8"], [f"{output}.unscaled"], to=onnx.TensorProto.FLOAT)
        self._emit("Gather", [table + SCALE, ids], [f"{output}.scale"])
        self._emit("Unsqueeze", [f"{output}.scale", _REST], [f"{output}.scales"])
        self._emit("Mul", [f"{output}.unscaled", f"{output}.scales"], [output])

    def _emit(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))


def parameters_of(template: Template) -> list[str]:
    """What the nodes read that is neither an input, nor a constant, nor computed: parameters or stored tensors."""
    known = {tensor.name for tensor in (*template.inputs, *template.constants)} | {""}
    known.update(name for node in template.nodes for name in node.output)
    return list(dict.fromkeys(name for node in template.nodes for name in node.input if name not in known))


def assemble(template: Template, weights: Callable[[str], onnx.TensorProto]) -> onnx.ModelProto:
    """A lowered template as a model, given the initialiser of each stored tensor."""
    initializers = [*template.constants, *map(weights, parameters_of(template))]
    name, nodes = "compressor", list(template.nodes)
    graph = helper.make_graph(nodes, name, list(template.inputs), list(template.outputs), initializers)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, producer_name="compressor")
