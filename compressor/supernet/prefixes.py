"""Which sub-networks begin alike: layers that several of them run in the same way are run once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from compressor.supernet.subnetworks import Subnetwork


@dataclass(frozen=True)
class Branch:
    """A stretch of layers, and what comes behind it.

    Attributes:
        layers: the stretch, as a sub-network of its own.
        name: the size that ends with it; None where branches follow.
        branches: what goes on from its output.
    """

    layers: Subnetwork
    name: str | None = None
    branches: tuple["Branch", ...] = ()


def branches(sizes: Mapping[str, Subnetwork]) -> tuple[Branch, ...]:
    """Sub-networks as a tree of shared prefixes; every one of them keeps at least its last layer to itself.

    Of six layers, depth 0.75 keeps 1, 2, 3, 4 and 6: it shares the first four with depth 1.0 of the same width.
    """
    return tuple(_branches([(name, _triples(size)) for name, size in sizes.items()]))


_Triple = tuple[int, int, int]


def _triples(size: Subnetwork) -> tuple[_Triple, ...]:
    """Each kept layer with its heads and neurons: equal ones compute the same."""
    return tuple(zip(size.kept, size.heads, size.neurons, strict=True))


def _stretch(triples: Iterable[_Triple]) -> Subnetwork:
    return Subnetwork(*zip(*triples, strict=True))


def _branches(sizes: list[tuple[str, tuple[_Triple, ...]]]) -> Iterable[Branch]:
    # A size with one layer left has nothing to share, for that one it keeps.
    yield from (Branch(_stretch(left), name) for name, left in sizes if len(left) == 1)
    longer = sorted((item for item in sizes if len(item[1]) > 1), key=lambda item: item[1][0])
    for _, found in groupby(longer, key=lambda item: item[1][0]):
        group = list(found)
        if len(group) == 1:
            yield Branch(_stretch(group[0][1]), group[0][0])
            continue
        shared = _common([left for _, left in group])
        tails = [(name, left[shared:]) for name, left in group]
        yield Branch(_stretch(group[0][1][:shared]), None, tuple(_branches(tails)))


def _common(lefts: list[tuple[_Triple, ...]]) -> int:
    """How many leading layers are equal in all, the last layer of each left out."""
    length = 0
    for layers in zip(*(left[:-1] for left in lefts), strict=False):
        if len(set(layers)) > 1:
            break
        length += 1
    return length
