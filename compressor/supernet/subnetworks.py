"""Sub-networks: which layers, and how many heads and neurons in each, and what that costs."""

from dataclasses import dataclass
from typing import Literal

from compressor.errors import CompressorError
from compressor.supernet.architectures import Dimensions

DepthRule = Literal["paper", "reference"]


@dataclass(frozen=True)
class Subnetwork:
    """One size: layer j of it reads layer `kept[j]` of the super-network, with its first heads and neurons.

    Attributes:
        kept: 0-based layers of the super-network, ascending.
        heads: attention heads left in each kept layer.
        neurons: feed-forward neurons left in each kept layer.
    """

    kept: tuple[int, ...]
    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    def check(self, dimensions: Dimensions) -> None:
        """Raise ValueError if this is no sub-network of an encoder of these dimensions."""
        if not len(self.kept) == len(self.heads) == len(self.neurons) > 0:
            raise ValueError(f"kept, heads and neurons must be equally long and not empty: {self}")
        if list(self.kept) != sorted(set(self.kept)) or self.kept[0] < 0 or self.kept[-1] >= dimensions.layers:
            raise ValueError(f"kept layers {self.kept} are not ascending layers of 0..{dimensions.layers - 1}")
        for name, counts, most in (
            ("heads", self.heads, dimensions.heads),
            ("neurons", self.neurons, dimensions.neurons),
        ):
            if min(counts) < 1 or max(counts) > most:
                raise ValueError(f"{name} {counts} are not within 1..{most}")


def round_half_up(value: float) -> int:
    """Nearest whole number, at least 1, halves up: Python's `round(2 * 0.25)` is 0, which no layer can have."""
    return max(1, int(value + 0.5))


def kept_layers(layers: int, depth: int, rule: DepthRule) -> tuple[int, ...]:
    """The 0-based layers that a sub-network of `depth` layers keeps.

    `paper` keeps the last layer: min(N, floor(i N / depth)), i = 1..depth, 1-based (12 to 9 drops 3, 7 and 11).
    `reference` is Huawei's code: floor(i N / depth), i = 0..depth-1, 0-based, which drops the last layer.
    """
    if rule == "paper":
        return tuple(min(layers, i * layers // depth) - 1 for i in range(1, depth + 1))
    return tuple(i * layers // depth for i in range(depth))


def subnetwork(dimensions: Dimensions, width: float, depth: float, rule: DepthRule = "paper") -> Subnetwork:
    """The sub-network of one width and one depth multiplier, the same in every layer.

    Heads are max(1, floor(H·w + 0.5)), neurons rounded alike and on their own.
    """
    layers = round_half_up(dimensions.layers * depth)
    return Subnetwork(
        kept=kept_layers(dimensions.layers, layers, rule),
        heads=(round_half_up(dimensions.heads * width),) * layers,
        neurons=(round_half_up(dimensions.neurons * width),) * layers,
    )


def whole(dimensions: Dimensions) -> Subnetwork:
    """The super-network itself."""
    return subnetwork(dimensions, 1.0, 1.0)


def multipliers(size: Subnetwork, dimensions: Dimensions) -> tuple[float, float]:
    """Width and depth of any sub-network: the mean share of heads and neurons of its layers, and that of layers."""
    heads, neurons = sum(size.heads) / dimensions.heads, sum(size.neurons) / dimensions.neurons
    return (heads + neurons) / (2 * len(size.kept)), len(size.kept) / dimensions.layers


def size_name(width: float, depth: float) -> str:
    """The name of a size, as its folder has it: `w0.50-d0.75`."""
    return f"w{width:.2f}-d{depth:.2f}"


def grid(
    dimensions: Dimensions, widths: tuple[float, ...], depths: tuple[float, ...], rule: DepthRule = "paper"
) -> dict[str, Subnetwork]:
    """All sizes of a family by name, the largest first.

    Raises:
        CompressorError: two multipliers give the same sub-network of so small a model.
    """
    sizes: dict[str, Subnetwork] = {}
    for depth in sorted(depths, reverse=True):
        for width in sorted(widths, reverse=True):
            name, size = size_name(width, depth), subnetwork(dimensions, width, depth, rule)
            twin = next((other for other, known in sizes.items() if known == size), None)
            if twin:
                raise CompressorError(
                    f"family: {twin} and {name} are the same sub-network of a model with {dimensions.layers} layers, "
                    f"{dimensions.heads} heads and {dimensions.neurons} neurons; remove one of the multipliers"
                )
            sizes[name] = size
    return sizes


def paired_states(kept: tuple[int, ...], layers: int, rule: DepthRule) -> tuple[int, ...]:
    """The teacher's hidden state that each hidden state of a sub-network is compared with.

    State 0 is the embeddings, state l the output of layer l. `paper`: the outputs of the kept layers.
    `reference`: their inputs, and the last output. Embeddings and last outputs are paired in both.
    """
    if rule == "paper":
        return (0, *(layer + 1 for layer in kept))
    return (*kept, layers)


def encoder_macs(size: Subnetwork, dimensions: Dimensions, length: int) -> int:
    """Multiply-accumulates of the encoder layers for one text of `length` tokens.

    Query, key, value and output projections, both attention products, both feed-forward matrices;
    embeddings and head are left out (BERT-base at 128 tokens: 11.17e9).
    """
    total = 0
    for heads, neurons in zip(size.heads, size.neurons, strict=True):
        attention = heads * dimensions.head_rows
        total += 4 * length * dimensions.hidden * attention + 2 * length**2 * attention
        total += 2 * length * dimensions.hidden * neurons
    return total
