"""NNI's Taylor pruner as another way to importance: its training loop, its wrapped model, its raw scores."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from compressor.errors import CompressorError
from compressor.search.tuners import quiet_nni
from compressor.supernet.importance import Collector, Criterion, GateGradients, Importance, Reduction, grouped
from compressor.supernet.supernetwork import SuperNetwork


def importance_by_nni(
    supernet: SuperNetwork,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor],
    criterion: Criterion,
    reduction: Reduction = "sum_abs",
) -> Importance:
    """Score heads and neurons with NNI's `TaylorPruner`.

    `taylor` is the pruner's own criterion. `dynabert` needs signed sums over a head's weights before anything is made
    positive, and the gradients of biases, neither of which the pruner has: its gradients are handed to DynaBERT's
    collector before every step of its optimiser, whose learning rate is 0.

    NNI wraps modules, which reorders parameters, so that a copy of the model is used. It makes masks in the end,
    which are not looked at.

    Raises:
        CompressorError: NNI is not installed.
    """
    try:
        import nni
        from nni.compression.utils import TorchEvaluator
    except ImportError as error:
        raise CompressorError(
            f"backend: nni cannot be imported here ({error}); its wheels are for x86-64 alone: use backend torch"
        ) from error
    batches = list(batches)
    supernet.train(False)
    model = copy.deepcopy(supernet.model)
    collector = GateGradients(reduction) if criterion == "dynabert" else None

    def train(bound: Any, optimizer: Any, step: Any, _schedulers: Any, _steps: Any, _epochs: Any) -> None:
        for batch in batches:
            optimizer.zero_grad()
            step(batch, bound).backward()
            optimizer.step()

    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.0)
    with quiet_nni():
        evaluator = TorchEvaluator(train, optimizer, lambda batch, bound: loss(bound, batch))
        raw = _raw_scores(model, evaluator, len(batches), supernet, collector)
    supernet.model.zero_grad()
    if collector:
        return collector.scores()
    stem = f"{supernet.model.base_model_prefix}."
    return grouped(supernet, lambda name: raw[stem + name])


def _raw_scores(
    model: Any, evaluator: Any, steps: int, supernet: SuperNetwork, collector: Collector | None
) -> dict[str, Tensor]:
    """Run the pruner: its score of each element of a weight, by the module's name."""
    from nni.compression.pruning import TaylorPruner

    raw: dict[str, Tensor] = {}

    class Scores(TaylorPruner):
        """Keeps the elements' scores and makes no masks of them."""

        def _calculate_metrics(self, data: Any) -> Any:
            raw.update({name: scores["weight"] for name, scores in data.items()})
            return {}

        def _generate_sparsity(self, metrics: Any) -> Any:
            return {}

        def _register_trigger(self, evaluator: Any) -> None:
            super()._register_trigger(evaluator)
            if collector:
                evaluator.patch_optimizer_step([lambda: _hand_over(self._target_spaces, supernet, collector)], [])

    Scores(model, _configuration(supernet), evaluator, steps).compress()
    return raw


def _configuration(supernet: SuperNetwork) -> list[dict[str, Any]]:
    """NNI's: the matrices of heads and neurons, and biases for their gradients; ratios are nothing but required."""
    table, stem = supernet.architecture, f"{supernet.model.base_model_prefix}."
    names = (*table.head_rows, *table.head_columns, *table.neuron_rows, *table.neuron_columns)
    wanted = [f"{stem}{table.layers}.{layer}.{name}" for layer in range(supernet.dimensions.layers) for name in names]
    return [{"op_names": wanted, "target_names": ["weight", "bias"], "sparse_ratio": 0.5}]


def _hand_over(spaces: Any, supernet: SuperNetwork, collector: Collector) -> None:
    """Count the gradients of NNI's wrapped copy as those of the super-network."""
    for name, targets in spaces.items():
        module = supernet.model.get_submodule(name)
        for part, space in targets.items():
            getattr(module, part).grad = space.target.grad
    collector.add(supernet)
