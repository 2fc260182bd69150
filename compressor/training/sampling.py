"""Which sub-networks a step trains."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compressor.seeds import seed_of
from compressor.supernet.subnetworks import Subnetwork

# From the number of a step to the sub-networks that it trains.
Sampler = Callable[[int], Mapping[str, Subnetwork]]


def everything(sizes: Mapping[str, Subnetwork]) -> Sampler:
    """All sub-networks at every step, as in DynaBERT."""
    return lambda step: sizes


@dataclass(frozen=True)
class Sandwich:
    """The largest sub-network, the smallest, and some drawn between them, anew for every step.

    The sandwich rule of universally slimmable networks: the largest keeps the shared weights good, the smallest bounds
    what is lost, the drawn ones stand for the rest.

    Attributes:
        sizes: the family.
        costs: of each size; the highest and the lowest are trained at every step.
        drawn: how many of the others join them.
        seed: a step's draw is a function of it and of the step alone.
    """

    sizes: Mapping[str, Subnetwork]
    costs: Mapping[str, int]
    drawn: int
    seed: int

    def __call__(self, step: int) -> dict[str, Subnetwork]:
        """The sizes of one step, in the family's order."""
        always = {max(self.sizes, key=self.costs.__getitem__), min(self.sizes, key=self.costs.__getitem__)}
        others = [name for name in self.sizes if name not in always]
        draw = random.Random(seed_of(self.seed, "sandwich", step))
        chosen = always | set(draw.sample(others, min(self.drawn, len(others))))
        return {name: size for name, size in self.sizes.items() if name in chosen}
