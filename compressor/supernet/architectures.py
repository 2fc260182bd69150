"""Which parameters of a transformers encoder belong to heads and to neurons: one small table an architecture."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from compressor.errors import CompressorError


@dataclass(frozen=True)
class Architecture:
    """Where the parameters that a sub-network slices stand in a stock transformers model.

    Names of modules are relative to one layer, `layers` and `embeddings` to the base model.
    `head_rows` and `neuron_rows` lose rows (and bias entries), `head_columns` and `neuron_columns` lose columns.
    """

    model_type: str
    layers: str = "encoder.layer"
    embeddings: str = "embeddings"
    head_rows: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
    head_columns: tuple[str, ...] = ("attention.output.dense",)
    neuron_rows: tuple[str, ...] = ("intermediate.dense",)
    neuron_columns: tuple[str, ...] = ("output.dense",)


# RoBERTa keeps BERT's names; its own embeddings are never sliced.
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({name: Architecture(name) for name in ("bert", "roberta")})


@dataclass(frozen=True)
class Dimensions:
    """The sizes of an encoder that a sub-network is cut from.

    Raises:
        CompressorError: the heads do not divide the width.
    """

    layers: int
    heads: int
    neurons: int
    hidden: int

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise CompressorError(
                f"model: {self.heads} attention heads do not divide the hidden size {self.hidden}; "
                "a head must have a whole number of rows"
            )

    @property
    def head_rows(self) -> int:
        """Rows of the query, key and value matrices that belong to one head."""
        return self.hidden // self.heads


def architecture_of(model_type: str) -> Architecture:
    """The table of a model type as `config.model_type` names it.

    Raises:
        CompressorError: the architecture is not supported.
    """
    if model_type not in ARCHITECTURES:
        raise CompressorError(
            f"model: the architecture {model_type!r} is not supported; supported encoders: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[model_type]


def dimensions_of(config: Any) -> Dimensions:
    """Read the sizes out of a transformers configuration (BERT's field names)."""
    return Dimensions(
        config.num_hidden_layers, config.num_attention_heads, config.intermediate_size, config.hidden_size
    )
