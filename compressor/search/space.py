"""What may be searched: which layers a size keeps, and how many heads and neurons in each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.supernet.architectures import Dimensions
from compressor.supernet.subnetworks import Subnetwork, round_half_up

_PROPORTIONS = (4, 12)
# Neurons are cut in so many steps: finer ones change neither score nor latency by as much as either is noisy.
_STEPS = 32
# What a bisection of a factor between 0 and its largest value leaves, 2^-12, moves no count of heads.
_HALVINGS = 12


@dataclass(frozen=True)
class Space:
    """Proportions of a sub-network, in the form that NNI's tuners take, and the sub-network of a cost that they give.

    For each layer: whether it is kept, its heads and its neurons. Heads and neurons are proportions: `decode`
    multiplies all of them by what fills the budget, so that every suggestion is as large as it may be. Proportions
    differ threefold at most, and three layers of four are kept by chance: a super-network that learnt equal widths
    answers worse the farther a size is from them.
    """

    dimensions: Dimensions

    def parameters(self) -> dict[str, dict[str, Any]]:
        """NNI's search space."""
        found: dict[str, dict[str, Any]] = {}
        for layer in range(self.dimensions.layers):
            found[f"keep_{layer}"] = {"_type": "choice", "_value": [1, 1, 1, 0]}
            found[f"heads_{layer}"] = {"_type": "quniform", "_value": [*_PROPORTIONS, 1]}
            found[f"neurons_{layer}"] = {"_type": "quniform", "_value": [*_PROPORTIONS, 1]}
        return found

    def even(self, kept: tuple[int, ...]) -> dict[str, float]:
        """These layers with equal shares: what the grid's sizes are."""
        found: dict[str, float] = {}
        for layer in range(self.dimensions.layers):
            most = _PROPORTIONS[1]
            found |= {f"keep_{layer}": int(layer in kept), f"heads_{layer}": most, f"neurons_{layer}": most}
        return found

    def decode(
        self, suggestion: Mapping[str, float], cost: Callable[[Subnetwork], float], budget: float
    ) -> Subnetwork | None:
        """The largest sub-network of these proportions whose cost is within the budget; None if there is none.

        Where even one head and one step of neurons a layer cost too much, layers with the smallest shares are left out.
        """
        layers = self.dimensions.layers
        kept = [layer for layer in range(layers) if suggestion[f"keep_{layer}"]] or [layers - 1]
        shares = {
            layer: (suggestion[f"heads_{layer}"] / _PROPORTIONS[1], suggestion[f"neurons_{layer}"] / _PROPORTIONS[1])
            for layer in kept
        }
        while shares and cost(self._scaled(shares, 0.0)) > budget:
            del shares[min(shares, key=lambda layer: sum(shares[layer]))]
        return self._largest(shares, cost, budget) if shares else None

    def _largest(
        self, shares: Mapping[int, tuple[float, float]], cost: Callable[[Subnetwork], float], budget: float
    ) -> Subnetwork:
        # With this factor every count is at its most.
        low, high = 0.0, 1 / min(share for pair in shares.values() for share in pair)
        if cost(self._scaled(shares, high)) <= budget:
            return self._scaled(shares, high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if cost(self._scaled(shares, middle)) <= budget:
                low = middle
            else:
                high = middle
        return self._scaled(shares, low)

    def _scaled(self, shares: Mapping[int, tuple[float, float]], factor: float) -> Subnetwork:
        heads, neurons = self.dimensions.heads, self.dimensions.neurons
        steps = min(_STEPS, neurons)
        return Subnetwork(
            kept=tuple(shares),
            heads=tuple(min(heads, round_half_up(heads * share * factor)) for share, _ in shares.values()),
            neurons=tuple(
                min(steps, round_half_up(steps * share * factor)) * neurons // steps for _, share in shares.values()
            ),
        )


@dataclass(frozen=True)
class Candidate:
    """A sub-network and what is known of it.

    Attributes:
        milliseconds: of one text, by the latency model.
        metric, loss: on the search rows, of its PyTorch form.
        rows: how many these were.
    """

    size: Subnetwork
    milliseconds: float
    metric: float
    loss: float
    rows: int

    @property
    def score(self) -> float:
        """What is searched for: the metric, and of equal ones the lower loss."""
        return self.metric - 1e-3 * min(self.loss, 10.0)
