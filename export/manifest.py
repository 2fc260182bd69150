"""The manifest of a family, `family.json`: what sizes there are, what they hold, score and cost. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError, nearest
from compressor.files import read_json, sha256, write_json
from compressor.version import __version__

MANIFEST = "family.json"
FORMAT = 2
# Where the weights of a shared layout lie, by precision; PyTorch reads the first.
WEIGHTS = {"fp32": "model.safetensors", "int8": "model_int8.safetensors"}


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: the median, and what one in twenty exceeds."""

    median: float
    p95: float


@dataclass(frozen=True)
class Size:
    """One size of a family.

    Attributes:
        kept_layers: 0-based layers of the super-network that it reads.
        heads, neurons: left in each kept layer.
        macs: of the encoder for one text of the family's `max_length`.
        graphs: its ONNX file, by precision; paths are relative to the family's folder.
        bytes: of its graph and of the weights that it reads, by precision.
        parity: what the export measured against PyTorch.
        metrics: the metric as `torch`, `fp32` and `int8`, empty before the evaluate stage.
        latency_ms: median milliseconds as `fp32` and `int8`, empty before the benchmark stage.
        latency_p95_ms: what one call in twenty exceeds.
    """

    name: str
    width: float
    depth: float
    kept_layers: tuple[int, ...]
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    parameters: int
    macs: int
    graphs: dict[str, str]
    bytes: dict[str, int]
    parity: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    latency_p95_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A family: all sizes of one run and what was measured of them.

    Attributes:
        config: of the super-network, as transformers has it.
        task: type, whether it is about a `pair` of texts, and labels and number of outputs as the models' configuration
            has them.
        max_length: tokens that texts were cut to in training.
        layout: `shared`: all sizes read the same weights; `standalone`: a folder a size.
        sizes: the grid's, the largest first, then what a search found.
        tokenizer: its files.
        files: bytes and sha256 of everything that was exported, by path relative to the family's folder.
        int8: whether it has 7 bits (`reduced_range`), since the machine that exported it has no VNNI.
        vocabulary: tokens `before` and `after` it was pruned, and what that did to the validation texts; empty if not.
        evaluation: metric, rows, what was scored against and the score of the best constant answer.
        benchmark: batch size, length, threads and machine of the latencies.
        teacher: `parameters`, `macs`, and of PyTorch `metrics` and `latency_ms`.
    """

    architecture: str
    config: dict[str, Any]
    task: dict[str, Any]
    max_length: int
    layout: str
    sizes: tuple[Size, ...]
    tokenizer: tuple[str, ...]
    files: dict[str, dict[str, Any]]
    int8: dict[str, Any] = field(default_factory=dict)
    vocabulary: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    benchmark: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    compressor: str = __version__

    @property
    def smallest(self) -> Size:
        """The size that computes least."""
        return min(self.sizes, key=lambda size: size.macs)

    def size(self, name: str) -> Size:
        """A size by its name.

        Raises:
            CompressorError: there is none of that name.
        """
        sizes = {size.name: size for size in self.sizes}
        if name not in sizes:
            raise CompressorError(f"size: there is no {name!r}{nearest(name, sizes)}")
        return sizes[name]

    def with_scores(self, summary: Mapping[str, Any], scores: Mapping[str, dict[str, float]]) -> "Manifest":
        """The same family with metrics, which are given by size name and `teacher`."""
        sizes = tuple(replace(size, metrics=scores[size.name]) for size in self.sizes)
        return replace(
            self, sizes=sizes, evaluation=dict(summary), teacher={**self.teacher, "metrics": scores["teacher"]}
        )

    def with_latencies(
        self, conditions: Mapping[str, Any], latencies: Mapping[str, Mapping[str, Latency]]
    ) -> "Manifest":
        """The same family with latencies, which are given by size name (and `teacher`, if it was timed)."""
        medians, tails = (
            {name: {kind: getattr(value, which) for kind, value in found.items()} for name, found in latencies.items()}
            for which in ("median", "p95")
        )
        sizes = tuple(
            replace(size, latency_ms=medians[size.name], latency_p95_ms=tails[size.name]) for size in self.sizes
        )
        teacher = {**self.teacher, "latency_ms": medians.get("teacher", {})}
        return replace(self, sizes=sizes, benchmark=dict(conditions), teacher=teacher)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def checked_file(folder: Path, family: Manifest, name: str) -> Path:
    """A file of a family as it was exported.

    Raises:
        CompressorError: it is none of the family's, lies elsewhere, is missing or was changed.
    """
    known = family.files.get(name)
    path = folder / name
    if known is None:
        raise CompressorError(f"{folder / MANIFEST}: {name} is none of the files that it lists")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CompressorError(f"{folder / MANIFEST}: {name} leaves the family's folder")
    if not path.is_file():
        raise CompressorError(f"{path} is missing; {folder / MANIFEST} lists it")
    if path.stat().st_size != known.get("bytes") or sha256(path) != known.get("sha256"):
        raise CompressorError(f"{path} is not the file that was exported: its bytes have changed; export it again")
    return path


def write_manifest(family: Manifest, folder: Path) -> None:
    """Write the manifest in one step."""
    write_json(folder / MANIFEST, asdict(family))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a family folder.

    Raises:
        CompressorError: it is missing, is no manifest, or of a format that this version does not read.
    """
    path = folder / MANIFEST
    value = read_json(path)
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        hint = "; export the family again" if found in range(FORMAT) else ""
        raise CompressorError(f"{path}: format {found!r}; this version of compressor reads {FORMAT}{hint}")
    try:
        sizes = tuple(_size(entry) for entry in value.pop("sizes"))
        return Manifest(sizes=sizes, tokenizer=tuple(value.pop("tokenizer")), **value)
    except (KeyError, TypeError, AttributeError) as error:
        raise CompressorError(f"{path} is no manifest of a family: {error}") from error


def _size(entry: dict[str, Any]) -> Size:
    lists = ("kept_layers", "heads", "neurons")
    values: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in entry.items()}
    return Size(**values)
