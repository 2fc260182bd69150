"""One mapping from a sub-network to slices of the super-network's parameters.

Training, evaluation and extraction all read this mapping; nothing else in the project knows which rows a size keeps.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from compressor.supernet.architectures import Architecture, Dimensions
from compressor.supernet.subnetworks import Subnetwork


@dataclass(frozen=True)
class View:
    """A leading slice of one parameter (or buffer) of the super-network.

    Attributes:
        source: its name in the super-network.
        rows: how many leading rows are kept; None keeps all.
        columns: how many leading columns are kept; None keeps all.
    """

    source: str
    rows: int | None = None
    columns: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The slice itself: a view, no copy."""
        if self.rows is not None:
            tensor = tensor[: self.rows]
        if self.columns is not None:
            tensor = tensor[:, : self.columns]
        return tensor


def views(
    names: Iterable[str], architecture: Architecture, base: str, dimensions: Dimensions, size: Subnetwork
) -> dict[str, View]:
    """What each parameter of a model with `len(size.kept)` layers reads from the super-network.

    Args:
        names: parameters and buffers of the super-network.
        base: name of the base model within it (`bert`), as `base_model_prefix` has it.

    Returns:
        Views by the parameter's name in the sub-network.
    """
    size.check(dimensions)
    stem = f"{base}.{architecture.layers}."
    places = {layer: place for place, layer in enumerate(size.kept)}
    found: dict[str, View] = {}
    for name in names:
        if not name.startswith(stem):
            found[name] = View(name)
            continue
        layer, parameter = name.removeprefix(stem).split(".", 1)
        place = places.get(int(layer))
        if place is not None:
            rows, columns = _kept(
                architecture, parameter, size.heads[place] * dimensions.head_rows, size.neurons[place]
            )
            found[f"{stem}{place}.{parameter}"] = View(name, rows, columns)
    return found


def _kept(architecture: Architecture, parameter: str, head_rows: int, neurons: int) -> tuple[int | None, int | None]:
    """Rows and columns that a layer's parameter (`attention.self.query.weight`) keeps; None for all."""
    module, kind = parameter.rsplit(".", 1)
    if module in architecture.head_rows:
        return head_rows, None
    if module in architecture.neuron_rows:
        return neurons, None
    # A bias behind a matrix that lost columns has an entry for each of its rows, and they all stay.
    if module in architecture.head_columns and kind == "weight":
        return None, head_rows
    if module in architecture.neuron_columns and kind == "weight":
        return None, neurons
    return None, None


def count(found: Mapping[str, View], tensors: Mapping[str, Tensor]) -> int:
    """Numbers held by the parameters of a sub-network."""
    return sum(view.of(tensors[view.source]).numel() for view in found.values())
