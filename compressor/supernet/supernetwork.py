"""A stock transformers model, run at any of its sizes through views of its parameters."""

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.masking_utils import create_bidirectional_mask

from compressor.supernet.architectures import Architecture, Dimensions, architecture_of, dimensions_of
from compressor.supernet.dropout import ThriftyDropout
from compressor.supernet.subnetworks import Subnetwork, whole
from compressor.supernet.views import View, count, views


class _GivenEmbeddings(nn.Module):
    """Stands where a skeleton's embeddings were and hands on the states that were computed once for all sizes."""

    def forward(self, *, inputs_embeds: Tensor, **_: object) -> Tensor:
        return inputs_embeds


class SuperNetwork:
    """Runs the sub-networks of a stock model without patching one of its layers.

    A *skeleton* is the stock class with as many layers as the sub-network, on the meta device, so without memory;
    it is called with views of the super-network's parameters. Stock encoders take the number of heads from the
    shape of the tensor, so they need not know that heads are missing.

    Embeddings are never sliced: `embed` computes them once for any number of sub-networks.

    Attributes:
        model: the stock model (a `...ForSequenceClassification`) that owns the parameters.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.architecture: Architecture = architecture_of(model.config.model_type)
        self.dimensions: Dimensions = dimensions_of(model.config)
        self._skeletons: dict[int, nn.Module] = {}
        self._views: dict[Subnetwork, dict[str, View]] = {}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name: the very tensors of the model, shared ones under each of their names."""
        return dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())

    @property
    def whole(self) -> Subnetwork:
        """The sub-network that leaves nothing out."""
        return whole(self.dimensions)

    def train(self, mode: bool = True) -> None:
        """Switch dropout on or off in the model and in every skeleton."""
        self.model.train(mode)
        for skeleton in self._skeletons.values():
            skeleton.train(mode)

    def views(self, size: Subnetwork) -> dict[str, View]:
        """The parameter views of a sub-network, by the names that a model of its depth has."""
        if size not in self._views:
            base = self.model.base_model_prefix
            self._views[size] = views(self.tensors, self.architecture, base, self.dimensions, size)
        return self._views[size]

    def parameters(self, size: Subnetwork) -> int:
        """How many parameters a sub-network has, buffers not counted."""
        trained = dict(self.model.named_parameters())
        return count({name: view for name, view in self.views(size).items() if view.source in trained}, trained)

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Output of the embeddings [B, n, d] for `input_ids` and whatever else the tokenizer gave."""
        given = {name: value for name, value in inputs.items() if name != "attention_mask"}
        return self.model.base_model.get_submodule(self.architecture.embeddings)(**given)

    def spread(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """A mask [B, n] in the form [B, 1, n, n] that attention takes, made once for any number of sub-networks.

        Left to themselves the layers make it anew in every pass, and look into it on the host, for which a GPU waits.
        """
        return create_bidirectional_mask(
            self.model.config, embeddings, attention_mask, allow_is_bidirectional_skip=False
        )

    def run(
        self,
        size: Subnetwork,
        embeddings: Tensor,
        attention_mask: Tensor,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        hidden_states: bool = False,
    ) -> Any:
        """Forward pass of one sub-network.

        Args:
            embeddings: what `embed` returned, [B, n, d].
            attention_mask: [B, n], or what `spread` made of it.
            tensors: the sub-network's parameters; None takes views of the super-network's.
            hidden_states: also return the states, one more than the sub-network has layers.

        Returns:
            The stock model's output: `logits` [B, labels], `hidden_states` (tuple of [B, n, d]).
        """
        tensors = self.inner_views(size, detached=False) if tensors is None else tensors
        inputs = {"inputs_embeds": embeddings, "attention_mask": attention_mask, "output_hidden_states": hidden_states}
        return functional_call(self._skeleton(len(size.kept)), dict(tensors), args=(), kwargs=inputs)

    def inner_views(self, size: Subnetwork, *, detached: bool) -> dict[str, Tensor]:
        """The tensors behind the embeddings that `run` needs.

        Args:
            detached: as leaves of their own, whose gradients are slices of the parameters' gradients: what a backward
                pass finds is added right there. A slice that autograd sees would get a gradient of the full
                size, filled with zeros, for every sub-network of a step.
        """
        stem = f"{self.model.base_model_prefix}.{self.architecture.embeddings}."
        inner: dict[str, Tensor] = {}
        given: set[int] = set()
        for name, view in self.views(size).items():
            source = self.tensors[view.source]
            # A bias that two modules share is shared in the skeleton too, and is given once.
            if name.startswith(stem) or id(source) in given:
                continue
            given.add(id(source))
            inner[name] = _leaf(view, source) if detached else view.of(source)
        return inner

    def _skeleton(self, layers: int) -> nn.Module:
        if layers not in self._skeletons:
            config = copy.deepcopy(self.model.config)
            config.num_hidden_layers = layers
            with torch.device("meta"):
                skeleton = type(self.model)(config)
            setattr(skeleton.base_model, self.architecture.embeddings, _GivenEmbeddings())
            _replace_dropout(skeleton)
            self._skeletons[layers] = skeleton.train(self.model.training)
        return self._skeletons[layers]


def _replace_dropout(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Dropout:
            setattr(module, name, ThriftyDropout(child.p))
        _replace_dropout(child)


def _leaf(view: View, source: Tensor) -> Tensor:
    leaf = view.of(source.detach())
    if source.requires_grad:
        if source.grad is None:
            source.grad = torch.zeros_like(source)
        leaf.requires_grad_().grad = view.of(source.grad)
    return leaf
