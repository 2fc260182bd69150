"""What a family costs on disk, in memory and in time, against what one would do without it.

    .venv/bin/python benchmarks/family.py --model MODEL --output runs/bench-family

Packs MODEL (with a head of random weights if it has none) as the family of twelve sizes, and beside it as users would:
`torch.onnx.export` with its defaults, `quantize_dynamic` per channel with signed weights. Prints

- export: the time of 24 graphs, checked, against that of one plain export, quantised and checked;
- disk: the package against its largest size alone;
- memory: what opening the sizes and answering once adds to a process, each arrangement in a process of its own;
- latency: medians of all forms, interleaved, at several batches and lengths; sizes of the family thrifty and not;
- limit: how much of the speed of one large matrix product a whole size reaches;
- profile: where the time of the full size goes.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compressor.export.latency import interleaved, ones
from compressor.export.manifest import WEIGHTS
from compressor.export.session import Session

WIDTHS, DEPTHS = (1.0, 0.75, 0.5, 0.25), (1.0, 0.75, 0.5)
PLAIN = {"fp32": "plain.onnx", "int8": "plain_int8.onnx"}
FULL, SMALL = "w1.00-d1.00", "w0.25-d0.50"
MEMORY = ("full alone", "twelve alone", "twelve shared", "smallest alone")


def export_all(model_name: str, folder: Path) -> dict[str, float]:
    """Write both forms and return the seconds of each part."""
    from compressor import models
    from compressor.export.package import Package
    from compressor.machine import int8_overflows
    from compressor.supernet.extraction import extract
    from compressor.supernet.subnetworks import grid
    from compressor.supernet.supernetwork import SuperNetwork
    from compressor.tasks import Classification

    model = models.load_model(model_name, Classification(("0", "1")))[0].eval()
    tokenizer = models.load_tokenizer(model_name)
    names, check = tokenizer.model_input_names, _checks(tokenizer)
    _export_plainly(model, names, folder)  # What is imported and compiled at the first export, both need.
    seconds = {
        "plain export and quantisation": _seconds(lambda: _export_plainly(model, names, folder)),
        "plain check": _seconds(lambda: check(model, folder / PLAIN["fp32"], folder / PLAIN["int8"])),
    }
    supernet = SuperNetwork(model)
    sizes = grid(supernet.dimensions, WIDTHS, DEPTHS)

    def pack() -> None:
        package = Package(supernet, names, folder, reduced=int8_overflows())
        for precision in ("fp32", "int8"):
            package.write_weights(precision)
            for name, size in sizes.items():
                package.write_graph(precision, size, folder / f"{name}-{precision}.onnx")

    seconds["family export and quantisation"] = _seconds(pack)
    seconds["family check"] = _seconds(
        lambda: [
            check(extract(supernet, size), folder / f"{name}-fp32.onnx", folder / f"{name}-int8.onnx")
            for name, size in sizes.items()
        ]
    )
    return seconds


def _export_plainly(model: Any, names: list[str], folder: Path) -> None:
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    class Logits(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return model(**dict(zip(names, inputs, strict=True))).logits

    example = tuple(torch.ones(2, 8, dtype=torch.long) for _ in names)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Logits().eval(),
            example,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=((dynamic,) * len(names),),
            verbose=False,
        )
        assert program is not None
        program.save(folder / PLAIN["fp32"], external_data=False)
        graph = program.model_proto
        # The quantiser contradicts the shapes that the exporter noted.
        del graph.graph.value_info[:]
        options = {"per_channel": True, "weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul", "Gemm"]}
        quantize_dynamic(graph, folder / PLAIN["int8"], **options)


def _checks(tokenizer: Any) -> Callable[[Any, Path, Path], None]:
    """The export stage's gate, on 256 texts."""
    import datasets
    import torch

    from compressor.data import shortest_first
    from compressor.export.parity import check_fp32, check_int8
    from compressor.generator import statements
    from compressor.tasks import Classification
    from compressor.training import Batches

    task = Classification(("0", "1"))
    # As long as SST-2's training texts, 13 tokens.
    texts = [row["sentence"] for row in statements(256, seed=1)]
    rows = datasets.Dataset.from_dict(dict(tokenizer(texts, truncation=True, max_length=128)))
    batches = Batches(shortest_first(rows), task, tokenizer, 32, None, 1)
    mixed = Batches(rows.select(range(32)), task, tokenizer, 32, None, 1)

    def check(model: Any, fp32: Path, int8: Path) -> None:
        with torch.inference_mode():
            check_fp32(model, fp32, 1e-4, longest=128)
            # A head of random weights answers near the border.
            check_int8(model, int8, task, batches, mixed, None, (0.0, 1.0))

    return check


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def disk(folder: Path) -> str:
    """Bytes of the package, and of its largest sizes alone."""
    import onnx

    alone = {}
    for precision in WEIGHTS:
        onnx.save(onnx.load(folder / f"{FULL}-{precision}.onnx"), folder / f"alone-{precision}.onnx")
        alone[precision] = (folder / f"alone-{precision}.onnx").stat().st_size
    files = [*folder.glob("w*.onnx"), *(folder / name for name in WEIGHTS.values())]
    total = sum(path.stat().st_size for path in files)
    return (
        f"package {total / 2**20:.1f} MiB in {len(files)} files; its full size alone: "
        + ", ".join(f"{precision} {size / 2**20:.1f} MiB" for precision, size in alone.items())
        + f"; package against both {total / sum(alone.values()):.3f}"
    )


def measure_memory(arrangement: str, precision: str, folder: Path) -> float:
    """MiB that this process grows by when it opens sizes and answers once with each."""
    buffers = {WEIGHTS[precision]: np.memmap(folder / WEIGHTS[precision], dtype=np.uint8, mode="r")}
    graphs = sorted(folder.glob(f"w*-{precision}.onnx"))
    if arrangement in ("full alone", "smallest alone"):
        name = FULL if arrangement == "full alone" else SMALL
        graphs = [folder / f"{name}-{precision}.onnx"]
    before = _resident()
    kept = []
    for graph in graphs:
        shared = arrangement == "twelve shared"
        session = Session(graph, 1, weights=buffers if shared else None, thrifty=shared)
        session.run(ones(session.inputs, 1, 128))
        kept.append(session)
    return (_resident() - before) / 2**10


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def memory(folder: Path) -> str:
    """A table of what each arrangement adds, each measured in a process of its own."""
    lines = ["| | fp32 MiB | of the full one | int8 MiB | of the full one |", "|---|---:|---:|---:|---:|"]
    found: dict[tuple[str, str], float] = {}
    for arrangement in MEMORY:
        cells = [arrangement]
        for precision in WEIGHTS:
            command = [sys.executable, __file__, "--memory-of", arrangement, precision, str(folder)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            found[arrangement, precision] = json.loads(result.stdout)
            ratio = found[arrangement, precision] / found["full alone", precision]
            cells += [f"{found[arrangement, precision]:.0f}", f"{ratio:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def latency(folder: Path, shapes: list[tuple[int, int]], threads: int, rounds: int) -> str:
    """A table of medians in milliseconds."""
    buffers = {name: np.memmap(folder / name, dtype=np.uint8, mode="r") for name in WEIGHTS.values()}
    sessions: dict[str, Session] = {}
    for precision, file in PLAIN.items():
        sessions[f"plain {precision}"] = Session(folder / file, threads)
        for size in (FULL, SMALL):
            graph = folder / f"{size}-{precision}.onnx"
            sessions[f"{size} {precision}"] = Session(graph, threads, weights=buffers)
            sessions[f"{size} {precision}, thrifty"] = Session(graph, threads, weights=buffers, thrifty=True)
    lines = ["| | " + " | ".join(f"{batch}x{length}" for batch, length in shapes) + " |"]
    lines.append("|---" + "|---:" * len(shapes) + "|")
    columns: list[Mapping[str, Any]] = []
    for batch, length in shapes:
        calls = {name: partial(session.run, ones(session.inputs, batch, length)) for name, session in sessions.items()}
        columns.append(interleaved(calls, rounds))
    for name in sessions:
        cells = [
            f"{found[name].median:.2f} ({found['plain fp32'].median / found[name].median:.1f}x)" for found in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def limit(model_name: str, folder: Path, length: int, rounds: int) -> str:
    """How much of what the machine's matrix products reach the full size reaches, for one text on one thread."""
    from compressor import models
    from compressor.supernet.architectures import dimensions_of
    from compressor.supernet.subnetworks import encoder_macs, whole

    dimensions = dimensions_of(models.load_config(model_name))
    size = whole(dimensions)
    attention = 2 * length**2 * dimensions.hidden * dimensions.layers
    matrices = encoder_macs(size, dimensions, length) - attention
    rows, inner, columns = 512, 1024, 4096
    calls: dict[str, Callable[[], object]] = {
        f"peak {precision}": _large_product(precision, rows, inner, columns) for precision in PLAIN
    }
    for precision, file in PLAIN.items():
        for name, session in (
            (f"plain {precision}", Session(folder / file, 1)),
            (f"{FULL} {precision}", Session(folder / f"{FULL}-{precision}.onnx", 1)),
        ):
            calls[name] = partial(session.run, ones(session.inputs, 1, length))
    found = {name: latency.median / 1000 for name, latency in interleaved(calls, rounds).items()}
    peak = {precision: 2 * rows * inner * columns / found[f"peak {precision}"] for precision in PLAIN}
    lines = [
        f"{precision}: {value / 1e9:.0f} G operations a second in one large product"
        for precision, value in peak.items()
    ]
    for precision in PLAIN:
        least = 2 * matrices / peak[precision] + 2 * attention / peak["fp32"]
        parts = [f"{name} {100 * least / found[f'{name} {precision}']:.0f}%" for name in ("plain", FULL)]
        lines.append(f"{precision} at 1x{length}: the limit is {1000 * least:.1f} ms, reached to: " + ", ".join(parts))
    return "\n".join(lines)


def _large_product(precision: str, rows: int, inner: int, columns: int) -> Callable[[], object]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights, states = (random.integers(-100, 100, shape) for shape in ((inner, columns), (rows, inner)))
    kinds = {
        "fp32": ("MatMul", np.float32, np.float32, TensorProto.FLOAT, TensorProto.FLOAT),
        "int8": ("MatMulInteger", np.uint8, np.int8, TensorProto.UINT8, TensorProto.INT32),
    }
    operator, left, right, given, made = kinds[precision]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", given, [rows, inner])],
        [helper.make_tensor_value_info("y", made, [rows, columns])],
        [numpy_helper.from_array(weights.astype(right), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {"x": states.astype(left)}
    return lambda: session.run(None, inputs)


def profile(folder: Path, length: int, rounds: int) -> str:
    """Milliseconds of the full size by operator, one text on one thread; the profiler itself takes some of them."""
    import onnxruntime

    lines = []
    for precision in PLAIN:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        graph = str(folder / f"{FULL}-{precision}.onnx")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        inputs = ones([node.name for node in session.get_inputs()], 1, length)
        for _ in range(rounds):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
        spent: Counter[str] = Counter()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
                spent[event["args"]["op_name"]] += event["dur"]
        parts = [f"{name} {value / 1000 / rounds:.2f}" for name, value in spent.most_common(12)]
        lines.append(f"{precision} {spent.total() / 1000 / rounds:.1f} ms: " + ", ".join(parts))
    return "\n".join(lines)


def export_times(model_folder: str, output: Path) -> str:
    """The files that everything else measures, written anew, and what each way takes."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    seconds = export_all(model_folder, output)
    plain, family = (sum(value for name, value in seconds.items() if name.startswith(k)) for k in ("plain", "family"))
    lines = [f"{name}: {value:.1f} s" for name, value in seconds.items()]
    lines.append(f"24 graphs against one plain export, quantised, both checked: {family / plain:.2f} times the time")
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--what", nargs="+", choices=["export", "disk", "memory", "latency", "limit", "profile"])
    parser.add_argument("--shapes", nargs="+", default=["1x16", "1x64", "1x128", "8x16", "8x64", "8x128"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--memory-of", nargs=3, metavar=("ARRANGEMENT", "PRECISION", "FOLDER"))
    options = parser.parse_args()
    if options.memory_of:
        arrangement, precision, folder = options.memory_of
        print(json.dumps(measure_memory(arrangement, precision, Path(folder))))
        return
    logging.disable(logging.WARNING)
    output = options.output
    shapes = [(int(batch), int(length)) for batch, _, length in (text.partition("x") for text in options.shapes)]
    sections: dict[str, Callable[[], str]] = {
        "export": lambda: export_times(options.model, output),
        "disk": lambda: disk(output),
        "memory": lambda: memory(output),
        "latency": lambda: latency(output, shapes, options.threads, options.rounds),
        "limit": lambda: limit(options.model, output, 128, options.rounds),
        "profile": lambda: profile(output, 128, options.rounds),
    }
    for name in options.what or sections:
        print(sections[name]())


if __name__ == "__main__":
    main()
