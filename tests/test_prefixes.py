"""The tree of sub-networks that begin alike."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from compressor.supernet.architectures import Dimensions
from compressor.supernet.prefixes import Branch, branches
from compressor.supernet.subnetworks import Subnetwork, grid

Layers = list[tuple[int, int, int]]


def layers(size: Subnetwork) -> Layers:
    return list(zip(size.kept, size.heads, size.neurons, strict=True))


def paths(found: tuple[Branch, ...], before: Layers) -> Iterator[tuple[str, Layers]]:
    """Every size with the layers on the way to it."""
    for branch in found:
        here = before + layers(branch.layers)
        assert bool(branch.name) != bool(branch.branches)
        if branch.name:
            yield branch.name, here
        yield from paths(branch.branches, here)


def run_layers(found: tuple[Branch, ...]) -> int:
    return sum(len(branch.layers.kept) + run_layers(branch.branches) for branch in found)


@st.composite
def subnetworks(draw: st.DrawFn) -> Subnetwork:
    kept = tuple(sorted(draw(st.sets(st.integers(0, 4), min_size=1))))
    counts = st.lists(st.integers(1, 2), min_size=len(kept), max_size=len(kept)).map(tuple)
    return Subnetwork(kept, draw(counts), draw(counts))


@given(st.lists(subnetworks(), min_size=1, max_size=8, unique=True))
def test_the_way_to_each_size_is_the_size(found: list[Subnetwork]) -> None:
    sizes = {str(place): size for place, size in enumerate(found)}
    tree = branches(sizes)
    reached = list(paths(tree, []))
    assert len(reached) == len(sizes)
    assert dict(reached) == {name: layers(size) for name, size in sizes.items()}
    assert run_layers(tree) <= sum(len(size.kept) for size in found)


def test_depths_of_one_width_share_their_beginning() -> None:
    """Six layers: depth 0.75 keeps 1, 2, 3, 4, 6 and shares four; depth 0.5 keeps 2, 4, 6 and shares none."""
    dimensions = Dimensions(6, 12, 384, 1536)
    widths = (1.0, 0.75, 0.5, 0.25)
    assert run_layers(branches(grid(dimensions, widths, (1.0, 0.75, 0.5)))) == 4 * (4 + 2 + 1 + 3)
    # Huawei's rule: 0.75 keeps the first five; it keeps the last of them to itself, and 0.5 (1, 3, 5) shares the first.
    assert run_layers(branches(grid(dimensions, widths, (1.0, 0.75, 0.5), "reference"))) == 4 * (1 + 3 + 2 + 1 + 2)
