"""A sub-network as a model of its own, which `from_pretrained` reads back."""

import copy
from functools import cache
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from compressor.errors import CompressorError
from compressor.supernet.architectures import ARCHITECTURES, Architecture, architecture_of, dimensions_of
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork

PREFIX = "compressor-"


def extract(supernet: SuperNetwork, size: Subnetwork) -> Any:
    """A sub-network as a model that owns its parameters and can be saved, loaded and trained further.

    Returns:
        A `...ForSequenceClassification` whose configuration names heads and neurons of every layer;
        its output equals that of the views to the last bit.
    """
    config_class, model_class = sized_classes(supernet.architecture.model_type)
    fields = copy.deepcopy(supernet.model.config).to_dict()
    for derived in ("model_type", "architectures", "transformers_version"):
        fields.pop(derived, None)
    fields |= {
        "num_hidden_layers": len(size.kept),
        "layer_heads": list(size.heads),
        "layer_neurons": list(size.neurons),
        "kept_layers": list(size.kept),
    }
    config = config_class(**fields)
    config._attn_implementation = supernet.model.config._attn_implementation
    with no_init_weights():  # All of them are replaced, and random numbers take longer than everything else here.
        model = model_class(config)
    owned = {
        name: view.of(supernet.tensors[view.source]).detach().clone() for name, view in supernet.views(size).items()
    }
    model.load_state_dict({name: owned[name] for name in model.state_dict()}, strict=True)
    return model.eval()


@cache
def sized_classes(model_type: str) -> tuple[Any, Any]:
    """Configuration and model class of an architecture whose layers differ in heads and neurons.

    They subclass the stock ones: only the shapes of the sliced matrices differ. Stock classes build every layer
    alike, and would load such weights wrongly or not at all.
    """
    architecture = architecture_of(model_type)
    stock_config = CONFIG_MAPPING[model_type]
    stock_model = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[stock_config]
    name = stock_config.__name__.removesuffix("Config")

    class SizedConfig(stock_config):  # type: ignore[misc, valid-type]
        model_type = PREFIX + architecture.model_type
        layer_heads: list[int] | None = None
        layer_neurons: list[int] | None = None
        kept_layers: list[int] | None = None

    SizedConfig.__name__ = SizedConfig.__qualname__ = f"Sized{name}Config"

    class SizedModel(_StrictLoading, stock_model):  # type: ignore[misc, valid-type]
        config_class = SizedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            _resize(self, architecture)

    SizedModel.__name__ = SizedModel.__qualname__ = f"Sized{stock_model.__name__}"
    return SizedConfig, SizedModel


class _StrictLoading:
    """Refuses to load a checkpoint with missing, surplus or misshapen weights: no model with random numbers."""

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **options: Any) -> Any:
        asked_for_report = options.pop("output_loading_info", False)
        try:
            model, report = super().from_pretrained(folder, *args, output_loading_info=True, **options)  # type: ignore[misc]
        except RuntimeError as error:
            raise CompressorError(f"{folder}: the weights do not fit config.json: {error}") from error
        wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
        if wrong:
            raise CompressorError(f"{folder}: the weights do not fit config.json: {wrong}")
        return (model, report) if asked_for_report else model


def _resize(model: Any, architecture: Architecture) -> None:
    """Give every layer the matrices that the configuration's heads and neurons ask for."""
    dimensions = dimensions_of(model.config)
    layers = model.base_model.get_submodule(architecture.layers)
    heads, neurons = model.config.layer_heads, model.config.layer_neurons
    if not (heads and neurons and len(heads) == len(neurons) == len(layers)):
        raise CompressorError(
            f"config.json: layer_heads {heads} and layer_neurons {neurons} must have an entry for each of the "
            f"{len(layers)} layers"
        )
    for layer, kept_heads, kept_neurons in zip(layers, heads, neurons, strict=True):
        head_rows = kept_heads * dimensions.head_rows
        for names, rows in ((architecture.head_rows, head_rows), (architecture.neuron_rows, kept_neurons)):
            for name in names:
                _replace(layer, name, rows=rows)
        for names, columns in ((architecture.head_columns, head_rows), (architecture.neuron_columns, kept_neurons)):
            for name in names:
                _replace(layer, name, columns=columns)


def _replace(layer: nn.Module, name: str, *, rows: int | None = None, columns: int | None = None) -> None:
    old: Any = layer.get_submodule(name)
    new = nn.Linear(
        columns or old.in_features,
        rows or old.out_features,
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    parent, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(parent), attribute, new)


def register(_: object = None) -> None:
    """Teach `AutoConfig` and `AutoModelForSequenceClassification` to read the sizes of a family."""
    for model_type in ARCHITECTURES:
        config_class, model_class = sized_classes(model_type)
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForSequenceClassification.register(config_class, model_class, exist_ok=True)


def is_sized(config: Any) -> bool:
    """Whether a configuration belongs to a size that was cut out of a super-network."""
    return str(config.model_type).startswith(PREFIX)
