"""The manifest of a family, `family.json`: what sizes there are, what they hold, score and cost. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.files import read_json, sha256, write_json
from compressor.version import __version__

MANIFEST = "family.json"
FORMAT = 1
GRAPHS = {"fp32": "model.onnx", "int8": "model_int8.onnx"}


@dataclass(frozen=True)
class Size:
    """One size of a family.

    Attributes:
        kept_layers: 0-based layers of the super-network that it reads.
        heads, neurons: left in each kept layer.
        macs: of the encoder for one text of the family's `max_length`.
        files: bytes and sha256 of each file of its folder.
        parity: what the export measured against PyTorch.
        metrics: the metric as `torch`, `fp32` and `int8`, empty before the evaluate stage.
        latency_ms: median milliseconds as `fp32` and `int8`, empty before the benchmark stage.
    """

    name: str
    width: float
    depth: float
    kept_layers: tuple[int, ...]
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    parameters: int
    macs: int
    files: dict[str, dict[str, Any]]
    parity: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)

    def graphs(self, family: Path) -> dict[str, Path]:
        """Its ONNX files by precision."""
        return {kind: family / self.name / file for kind, file in GRAPHS.items() if file in self.files}

    def bytes(self, kind: str) -> int | None:
        """Bytes of its ONNX file of a precision."""
        file = self.files.get(GRAPHS[kind])
        return None if file is None else int(file["bytes"])


@dataclass(frozen=True)
class Manifest:
    """A family: all sizes of one run and what was measured of them.

    Attributes:
        task: type, labels and number of outputs, as the models' configuration has them.
        max_length: tokens that texts were cut to in training.
        sizes: the largest first.
        evaluation: metric, rows, what was scored against and the score of the best constant answer.
        benchmark: batch size, length, threads and machine of the latencies.
        teacher: `parameters`, `macs`, and of PyTorch `metrics` and `latency_ms`.
    """

    architecture: str
    task: dict[str, Any]
    max_length: int
    sizes: tuple[Size, ...]
    evaluation: dict[str, Any] = field(default_factory=dict)
    benchmark: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    compressor: str = __version__

    def with_scores(self, summary: Mapping[str, Any], scores: Mapping[str, dict[str, float]]) -> "Manifest":
        """The same family with metrics, which are given by size name and `teacher`."""
        sizes = tuple(replace(size, metrics=scores[size.name]) for size in self.sizes)
        return replace(
            self, sizes=sizes, evaluation=dict(summary), teacher={**self.teacher, "metrics": scores["teacher"]}
        )

    def with_latencies(self, conditions: Mapping[str, Any], latencies: Mapping[str, dict[str, float]]) -> "Manifest":
        """The same family with latencies, which are given by size name and `teacher`."""
        sizes = tuple(replace(size, latency_ms=latencies[size.name]) for size in self.sizes)
        return replace(
            self, sizes=sizes, benchmark=dict(conditions), teacher={**self.teacher, "latency_ms": latencies["teacher"]}
        )


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of every file of a size's folder."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


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
        raise CompressorError(f"{path}: format {found!r}; this version of compressor reads {FORMAT}")
    try:
        sizes = tuple(_size(entry) for entry in value.pop("sizes"))
        return Manifest(sizes=sizes, **value)
    except (KeyError, TypeError, AttributeError) as error:
        raise CompressorError(f"{path} is no manifest of a family: {error}") from error


def _size(entry: dict[str, Any]) -> Size:
    lists = ("kept_layers", "heads", "neurons")
    values: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in entry.items()}
    return Size(**values)
