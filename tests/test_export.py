"""ONNX files: equal to PyTorch under every padding, readable by plain onnxruntime, described by the manifest."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from compressor.errors import CompressorError
from compressor.export.graph import trace
from compressor.export.latency import median_latencies
from compressor.export.manifest import Manifest, read_manifest, write_manifest
from compressor.export.parity import check_fp32
from compressor.export.quantise import quantise
from compressor.export.report import markdown_table, size_rows
from compressor.files import sha256
from compressor.models import load_size
from compressor.supernet.extraction import extract
from compressor.supernet.subnetworks import Subnetwork, grid
from compressor.supernet.supernetwork import SuperNetwork
from tests.conftest import tiny_model

Finished = tuple[Path, Path]
NAMES = {"bert": ["input_ids", "token_type_ids", "attention_mask"], "roberta": ["input_ids", "attention_mask"]}


@pytest.fixture(scope="module", params=["bert", "roberta"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SuperNetwork, Path]:
    """A super-network and the graphs of three widths of one depth, from one trace; the uneven one is a search's."""
    supernet = SuperNetwork(tiny_model(request.param))
    sizes = grid(supernet.dimensions, (1.0, 0.25), (0.75,))
    sizes["uneven"] = Subnetwork(kept=(0, 2, 3), heads=(1, 4, 2), neurons=(64, 7, 30))
    folder = tmp_path_factory.mktemp(request.param)
    template = trace(extract(supernet, sizes["w1.00-d0.75"]), NAMES[request.param])
    for name, size in sizes.items():
        model = extract(supernet, size)
        onnx.save(template.fill(model), folder / f"{name}.onnx")
        with torch.no_grad():
            torch.save(model.state_dict(), folder / f"{name}.pt")
    (folder / "sizes.json").write_text(json.dumps({n: [s.kept, s.heads, s.neurons] for n, s in sizes.items()}))
    return supernet, folder


def sizes_of(folder: Path) -> dict[str, Subnetwork]:
    values = json.loads((folder / "sizes.json").read_text())
    return {name: Subnetwork(*map(tuple, value)) for name, value in values.items()}


def test_every_width_of_one_trace_passes_the_gate(exported: tuple[SuperNetwork, Path]) -> None:
    supernet, folder = exported
    for name, size in sizes_of(folder).items():
        assert check_fp32(extract(supernet, size), folder / f"{name}.onnx", 1e-4, name, longest=40) < 1e-5


def test_the_gate_sees_a_single_changed_weight(exported: tuple[SuperNetwork, Path], tmp_path: Path) -> None:
    supernet, folder = exported
    graph = onnx.load(folder / "uneven.onnx")
    weight = next(item for item in graph.graph.initializer if list(item.dims) in ([32, 7], [7, 32]))
    value = numpy_helper.to_array(weight).copy()
    value.flat[0] += 1
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    onnx.save(graph, tmp_path / "changed.onnx")
    with pytest.raises(CompressorError, match=r"uneven: logits of changed\.onnx differ from PyTorch's by .*batch"):
        check_fp32(extract(supernet, sizes_of(folder)["uneven"]), tmp_path / "changed.onnx", 1e-4, "uneven", longest=40)


def test_the_gate_sees_a_mask_that_is_ignored(exported: tuple[SuperNetwork, Path], tmp_path: Path) -> None:
    """Right for texts without padding, wrong for all others: what fused attention nodes have done."""
    supernet, folder = exported
    graph = onnx.load(folder / "uneven.onnx")
    ones = onnx.helper.make_node("Greater", ["attention_mask", "minus_one"], ["all_true"])
    cast = onnx.helper.make_node("Cast", ["all_true"], ["no_mask"], to=onnx.TensorProto.INT64)
    for node in graph.graph.node:
        node.input[:] = ["no_mask" if name == "attention_mask" else name for name in node.input]
    graph.graph.initializer.append(numpy_helper.from_array(np.array(-1, dtype=np.int64), "minus_one"))
    for node in (cast, ones):
        graph.graph.node.insert(0, node)
    onnx.save(graph, tmp_path / "unmasked.onnx")
    with pytest.raises(CompressorError, match="right padding"):
        check_fp32(
            extract(supernet, sizes_of(folder)["uneven"]), tmp_path / "unmasked.onnx", 1e-4, "uneven", longest=40
        )


def test_quantised_matrices_are_int8_per_channel(exported: tuple[SuperNetwork, Path], tmp_path: Path) -> None:
    _, folder = exported
    quantise(folder / "uneven.onnx", tmp_path / "int8.onnx")
    graph = onnx.load(tmp_path / "int8.onnx").graph
    weights = [item for item in graph.initializer if item.data_type == onnx.TensorProto.INT8 and len(item.dims) == 2]
    scales = [item for item in graph.initializer if item.name.endswith("_scale") and len(item.dims) == 1]
    assert len(weights) >= 18 and len(scales) >= 18
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) >= 18


def test_a_size_folder_needs_nothing_but_onnxruntime(finished_run: Finished, tmp_path: Path) -> None:
    """Moved to another place, opened with plain onnxruntime at several shapes; equal to from_pretrained's logits."""
    shutil.copytree(finished_run[1] / "family" / "w0.50-d0.50", tmp_path / "moved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "moved")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "moved")
    session = onnxruntime.InferenceSession(tmp_path / "moved" / "model.onnx", providers=["CPUExecutionProvider"])
    quantised = onnxruntime.InferenceSession(tmp_path / "moved" / "model_int8.onnx", providers=["CPUExecutionProvider"])
    for texts in (["the plot is good"], ["the plot is bad", "i found the cast not very good but its music was dull"]):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        expected = model(**inputs).logits.detach().numpy()
        arrays = {name: value.numpy() for name, value in inputs.items()}
        np.testing.assert_allclose(session.run(None, arrays)[0], expected, atol=1e-4)
        assert quantised.run(None, arrays)[0].shape == expected.shape


def test_reloaded_sizes_answer_as_the_super_network(finished_run: Finished) -> None:
    from compressor.engine import plan
    from compressor.models import load_model
    from compressor.recipe import load_recipe
    from compressor.tasks import Classification

    folder, output = finished_run
    last = plan(load_recipe(str(folder / "recipe.yaml")), output)[4].folder
    supernet = SuperNetwork(load_model(last, Classification(("negative", "positive")))[0].eval())
    ids = torch.randint(5, 60, (2, 9))
    mask = torch.ones_like(ids)
    logits = []
    for size in read_manifest(output / "family").sizes:
        view = Subnetwork(size.kept_layers, size.heads, size.neurons)
        expected = supernet.run(view, supernet.embed({"input_ids": ids}), mask).logits
        found = load_size(output / "family" / size.name)(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(found, expected)
        logits.append(found)
    assert len({tuple(x.flatten().tolist()) for x in logits}) == 4


def test_the_manifest_describes_the_files(finished_run: Finished) -> None:
    family_folder = finished_run[1] / "family"
    family = read_manifest(family_folder)
    assert [size.name for size in family.sizes] == ["w1.00-d1.00", "w0.50-d1.00", "w1.00-d0.50", "w0.50-d0.50"]
    assert family.task["id2label"] == {"0": "negative", "1": "positive"}
    for size in family.sizes:
        folder = family_folder / size.name
        assert {path.name for path in folder.iterdir()} == set(size.files)
        assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())
        for name, file in size.files.items():
            assert file == {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        assert {"config.json", "model.safetensors", "model.onnx", "model_int8.onnx", "tokenizer.json"} <= set(
            size.files
        )
        assert set(size.metrics) == {"torch", "fp32", "int8"} and set(size.latency_ms) == {"fp32", "int8"}
        assert size.metrics["torch"] == size.metrics["fp32"]
        assert size.parity["fp32_difference"] < 1e-4 and 0.5 <= size.parity["int8_agreement"] <= 1
        parameters = AutoModelForSequenceClassification.from_pretrained(folder).num_parameters()
        assert parameters == size.parameters


def test_figures_for_people(finished_run: Finished) -> None:
    family_folder = finished_run[1] / "family"
    family = read_manifest(family_folder)
    rows = size_rows(family)
    assert [row["size"] for row in rows] == ["teacher", *(size.name for size in family.sizes)]
    assert rows[0]["torch"] == family.teacher["metrics"]["torch"] and rows[0]["torch_ms"] > 0
    with (family_folder / "sizes.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["int8"]) for row in written[1:]] == [size.metrics["int8"] for size in family.sizes]
    card = (family_folder / "README.md").read_text()
    assert markdown_table(family) in card and "most frequent answer scores" in card


def test_the_model_cards_example_runs(finished_run: Finished) -> None:
    family_folder = finished_run[1] / "family"
    code = (family_folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    subprocess.run([sys.executable, "-c", code + "assert logits.shape == (1, 2)"], cwd=family_folder, check=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "format None"),
        ('{"format": 99}', "format 99; this version of compressor reads 1"),
        ('{"format": 1}', "is no manifest of a family"),
        ('{"format": 1, "sizes": [{"name": "x"}]}', "is no manifest of a family"),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "family.json").write_text(text)
    with pytest.raises(CompressorError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_survives_the_round_trip(finished_run: Finished, tmp_path: Path) -> None:
    family = read_manifest(finished_run[1] / "family")
    write_manifest(replace(family, max_length=7), tmp_path)
    again = read_manifest(tmp_path)
    assert isinstance(again, Manifest) and again == replace(family, max_length=7)


def test_serving_rooms_import_no_torch() -> None:
    code = (
        "import sys, compressor.export.manifest, compressor.export.session, compressor.export.latency,"
        " compressor.export.report; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_latencies_are_measured_in_turn() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    found = median_latencies(calls, 4, lambda: order.append("|"))  # type: ignore[arg-type]
    assert "".join(order) == "aaabbb" + "ab|" * 4 and set(found) == {"a", "b"}
