"""A super-network as graphs of its sizes over shared weights."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from compressor.export.graph import LINEAR, Template, trace
from compressor.export.lowering import Storage, assemble, lower, parameters_of
from compressor.export.manifest import WEIGHTS
from compressor.export.quantise import quantise
from compressor.export.weights import ROW, SCALE, TRANSPOSED, ZERO, Array, Stored, write_weights
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork

# Zero points of all int8 matrices: they are symmetric.
_ZEROS = "zeros"


class Package:
    """Graphs and weights of all sizes, from one trace and one quantisation.

    Args:
        names: the tokenizer's model inputs.
        reduced: int8 in 7 bits.
    """

    def __init__(self, supernet: SuperNetwork, names: list[str], folder: Path, *, reduced: bool) -> None:
        self._supernet, self._folder, self._reduced = supernet, folder, reduced
        self._template = trace(supernet, names)
        self._parameters = {name: value.detach().numpy() for name, value in supernet.model.state_dict().items()}
        self._stored: dict[str, dict[str, Stored]] = {}
        self._lowered: dict[tuple[str, tuple[int, ...]], Template] = {}

    def write_weights(self, precision: str) -> None:
        """Write the weights that the sizes share in a precision."""
        storage = self._storages[precision]
        wanted = self._parameters if precision == "fp32" else parameters_of(self._template)
        tensors: dict[str, Array] = {}
        for name in wanted:
            value = self._parameters[name]
            if name in storage.int8:
                value, tensors[name + SCALE] = quantise(value, self._reduced)
            tensors[storage.name(name)] = value.T if name in storage.transposed else value
        if storage.int8:
            tensors[_ZEROS] = np.zeros(max(len(self._parameters[name]) for name in storage.int8), dtype=np.int8)
        self._stored[precision] = write_weights(tensors, self._folder / WEIGHTS[precision])

    def write_graph(self, precision: str, size: Subnetwork, path: Path) -> int:
        """Write the graph of a size, which refers to the weights, and say how many bytes both have."""
        parts = self._parts(precision, size)
        model = assemble(self._template_of(precision, size), lambda name: _reference(name, parts(name), precision))
        onnx.save(model, path)
        external = sum(parts(tensor.name).bytes for tensor in model.graph.initializer if tensor.external_data)
        return path.stat().st_size + external

    def _template_of(self, precision: str, size: Subnetwork) -> Template:
        key = (precision, size.kept)
        if key not in self._lowered:
            self._lowered[key] = lower(self._template.of(size.kept), self._storages[precision])
        return self._lowered[key]

    def _parts(self, precision: str, size: Subnetwork) -> Callable[[str], Stored]:
        """The part of each stored tensor that a size reads."""
        views = {view.source: view for view in self._supernet.views(size).values()}
        stored = self._stored[precision]

        def part(name: str) -> Stored:
            parameter = name.removesuffix(TRANSPOSED).removesuffix(SCALE).removesuffix(ZERO).removesuffix(ROW)
            view = views[parameter]
            if name.endswith(ROW):
                return stored[parameter].leading(view.rows).row
            if name.endswith(TRANSPOSED):
                return stored[name].leading(view.columns)
            if name.endswith(ZERO):
                return stored[_ZEROS].leading(view.rows or len(self._parameters[parameter]))
            return stored[name].leading(view.rows)

        return part

    @cached_property
    def _storages(self) -> dict[str, Storage]:
        views = self._supernet.views(self._supernet.whole).values()
        transposed = {view.source for view in views if view.columns is not None}
        vectors = {name for name, value in self._parameters.items() if value.ndim == 1}
        return {
            "fp32": Storage(transposed, frozenset(), vectors),
            "int8": Storage(transposed, _quantised(self._template), vectors),
        }


def _quantised(template: Template) -> set[str]:
    """Matrices that become int8: those of the linear layers and of the words, not the one that gives the answer."""
    outputs = {output.name for output in template.outputs}
    ids = "input_ids"
    return {
        node.input[1] if node.op_type == LINEAR else node.input[0]
        for node in template.nodes
        if (node.op_type == LINEAR and node.output[0] not in outputs)
        or (node.op_type == "Gather" and node.input[1] == ids)
    }


def _reference(name: str, part: Stored, precision: str) -> TensorProto:
    """An initialiser that stands in the weights file."""
    tensor = TensorProto(name=name, dims=part.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(part.type)
    for key, value in (("location", WEIGHTS[precision]), ("offset", part.offset), ("length", part.bytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
