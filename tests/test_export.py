"""ONNX files: equal to PyTorch under every padding, readable by plain onnxruntime, described by the manifest."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import compressor
from compressor.errors import CompressorError
from compressor.export.latency import interleaved
from compressor.export.manifest import Manifest, checked_file, read_manifest, write_manifest
from compressor.export.package import Package
from compressor.export.parity import check_fp32
from compressor.export.quantise import quantise
from compressor.export.report import markdown_table, size_rows
from compressor.export.standalone import write_all_standalone, write_standalone
from compressor.export.weights import read_index, read_weights
from compressor.files import sha256
from compressor.supernet.extraction import extract
from compressor.supernet.subnetworks import Subnetwork, grid
from compressor.supernet.supernetwork import SuperNetwork
from tests.conftest import tiny_model

Finished = tuple[Path, Path]
NAMES = {"bert": ["input_ids", "token_type_ids", "attention_mask"], "roberta": ["input_ids", "attention_mask"]}


SIZES = {"uneven": Subnetwork(kept=(0, 2, 3), heads=(1, 4, 2), neurons=(64, 7, 30))}


@pytest.fixture(scope="module", params=["bert", "roberta"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SuperNetwork, Path]:
    """A super-network and the graphs of a grid of sizes over shared weights; the uneven one is a search's."""
    supernet = SuperNetwork(tiny_model(request.param))
    SIZES.update(grid(supernet.dimensions, (1.0, 0.25), (1.0, 0.5)))
    folder = tmp_path_factory.mktemp(request.param)
    package = Package(supernet, NAMES[request.param], folder, reduced=False)
    for precision in ("fp32", "int8"):
        package.write_weights(precision)
        for name, size in SIZES.items():
            package.write_graph(precision, size, folder / f"{name}-{precision}.onnx")
    return supernet, folder


def changed(graph: Path, change: Callable[[onnx.GraphProto], None], target: Path) -> Path:
    """A copy of a graph, weights inside, after a change."""
    model = onnx.load(graph)
    change(model.graph)
    onnx.save(model, target)
    return target


def test_every_size_of_one_trace_passes_the_gate(exported: tuple[SuperNetwork, Path]) -> None:
    supernet, folder = exported
    for name, size in SIZES.items():
        assert check_fp32(extract(supernet, size), folder / f"{name}-fp32.onnx", 1e-4, longest=40) < 1e-5


def test_int8_is_near_fp32_for_every_size(exported: tuple[SuperNetwork, Path]) -> None:
    supernet, folder = exported
    for name, size in SIZES.items():
        # Two hundredths of logits of about 1, each matrix being within half a 127th of its rows' largest number.
        assert check_fp32(extract(supernet, size), folder / f"{name}-int8.onnx", 0.03, longest=40) > 1e-4


def test_weights_stand_in_one_file(exported: tuple[SuperNetwork, Path]) -> None:
    """Graphs hold no weights, what they refer to lies within the file, and all of it is what PyTorch has."""
    supernet, folder = exported
    expected = {name: value.numpy() for name, value in supernet.model.state_dict().items()}
    for name, value in read_weights(folder / "model.safetensors").items():
        np.testing.assert_array_equal(value, expected.pop(name))
    assert not expected
    for name in SIZES:
        graph = onnx.load(folder / f"{name}-fp32.onnx", load_external_data=False).graph
        assert sum(len(tensor.raw_data) for tensor in graph.initializer) < 1000
        for tensor in graph.initializer:
            for entry in tensor.external_data:
                assert entry.key != "location" or entry.value == "model.safetensors"


def test_int8_weights_are_quantised_by_rows(exported: tuple[SuperNetwork, Path]) -> None:
    supernet, folder = exported
    stored = load_file(folder / "model_int8.safetensors")
    exact = supernet.model.state_dict()
    matrices = {name: value for name, value in stored.items() if value.dtype == torch.int8 and value.ndim == 2}
    # Six matrices of each of the four layers, the words, and BERT's pooler or the dense layer of RoBERTa's head.
    assert len(matrices) == 26 and all(value.abs().max() == 127 for value in matrices.values())
    for name, value in matrices.items():
        parameter = name.removesuffix(".transposed")
        rows = value.T if parameter != name else value
        scale = stored[f"{parameter}.scale"]
        assert (rows * scale[:, None] - exact[parameter]).abs().le(scale[:, None] / 2 * 1.001).all()
    graph = onnx.load(folder / "uneven-int8.onnx", load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    # Three layers; query, key and value share their quantised input.
    assert kinds["QGemm"] == 13 and kinds["DynamicQuantizeMatMul"] == 6 and kinds["DynamicQuantizeLinear"] == 7
    assert kinds["Gemm"] == 1 and kinds["MatMul"] == 6


def test_seven_bits_where_eight_could_overflow() -> None:
    matrix = torch.randn(5, 9).numpy()
    matrix[3] = 0
    for reduced, largest in ((False, 127), (True, 63)):
        found, scales = quantise(matrix, reduced)
        assert np.abs(found).max() == largest and found.dtype == np.int8
        assert np.abs(found * scales[:, None] - matrix).max() <= scales.max() / 2 * 1.001


def test_the_gate_sees_a_single_changed_weight(exported: tuple[SuperNetwork, Path], tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        weight = next(item for item in graph.initializer if list(item.dims) in ([32, 7], [7, 32]))
        value = numpy_helper.to_array(weight).copy()
        value.flat[0] += 1
        weight.CopyFrom(numpy_helper.from_array(value, weight.name))

    supernet, folder = exported
    path = changed(folder / "uneven-fp32.onnx", change, tmp_path / "changed.onnx")
    with pytest.raises(CompressorError, match=r"changed\.onnx: logits differ from PyTorch's by .*batch"):
        check_fp32(extract(supernet, SIZES["uneven"]), path, 1e-4, longest=40)


def test_the_gate_sees_a_mask_that_is_ignored(exported: tuple[SuperNetwork, Path], tmp_path: Path) -> None:
    """Right for texts without padding, wrong for all others: what fused attention nodes have done."""

    def change(graph: onnx.GraphProto) -> None:
        ones = onnx.helper.make_node("Greater", ["attention_mask", "minus_one"], ["all_true"])
        cast = onnx.helper.make_node("Cast", ["all_true"], ["no_mask"], to=onnx.TensorProto.INT64)
        for node in graph.node:
            node.input[:] = ["no_mask" if name == "attention_mask" else name for name in node.input]
        graph.initializer.append(numpy_helper.from_array(np.array(-1, dtype=np.int64), "minus_one"))
        for node in (cast, ones):
            graph.node.insert(0, node)

    supernet, folder = exported
    path = changed(folder / "uneven-fp32.onnx", change, tmp_path / "unmasked.onnx")
    with pytest.raises(CompressorError, match="right padding"):
        check_fp32(extract(supernet, SIZES["uneven"]), path, 1e-4, longest=40)


def logits_of(path: Path, inputs: Any) -> Any:
    """What plain onnxruntime answers."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


TEXTS = (["the plot is good"], ["the plot is bad", "i found the cast not very good but its music was dull"])


def test_a_family_needs_nothing_but_onnxruntime(finished_run: Finished, tmp_path: Path) -> None:
    """Moved to another place, every graph opened with plain onnxruntime; equal to PyTorch's logits."""
    shutil.copytree(finished_run[1] / "family", tmp_path / "moved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "moved")
    for size in read_manifest(tmp_path / "moved").sizes:
        model = compressor.load(tmp_path / "moved", size.name)
        for texts in TEXTS:
            inputs = tokenizer(texts, padding=True, return_tensors="pt")
            expected = model(**inputs).logits.detach().numpy()
            found = {kind: logits_of(tmp_path / "moved" / graph, inputs) for kind, graph in size.graphs.items()}
            np.testing.assert_allclose(found["fp32"], expected, atol=1e-4)
            np.testing.assert_allclose(found["int8"], expected, atol=0.1)


def test_a_size_stands_alone(finished_run: Finished, tmp_path: Path) -> None:
    """Written from the shared weights: the same answers from plain onnxruntime and from from_pretrained."""
    family = finished_run[1] / "family"
    (tmp_path / "alone").mkdir()
    write_standalone(family, "w0.50-d0.50", tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {
        *("config.json", "model.safetensors", "model.onnx", "model_int8.onnx"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (tmp_path / "alone").iterdir())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "alone")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "alone")
    size = read_manifest(family).size("w0.50-d0.50")
    for texts in TEXTS:
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        assert torch.equal(model(**inputs).logits, compressor.load(family, size.name)(**inputs).logits)
        for kind, file in (("fp32", "model.onnx"), ("int8", "model_int8.onnx")):
            shared, alone = logits_of(family / size.graphs[kind], inputs), logits_of(tmp_path / "alone" / file, inputs)
            np.testing.assert_array_equal(shared, alone)
            # A few references less, which take more bytes than what is left of so small a model.
            assert (tmp_path / "alone" / file).stat().st_size == pytest.approx(size.bytes[kind], abs=3000)


def test_a_family_of_folders(finished_run: Finished, tmp_path: Path) -> None:
    shared = read_manifest(finished_run[1] / "family")
    write_all_standalone(finished_run[1] / "family", tmp_path)
    family = read_manifest(tmp_path)
    assert family.layout == "standalone" and len(family.sizes) == 4
    inputs = AutoTokenizer.from_pretrained(tmp_path)(TEXTS[1], padding=True, return_tensors="pt")
    for size in family.sizes:
        expected = logits_of(finished_run[1] / "family" / shared.size(size.name).graphs["int8"], inputs)
        np.testing.assert_array_equal(logits_of(tmp_path / size.graphs["int8"], inputs), expected)
        found = compressor.load(tmp_path, size.name)(**inputs).logits
        assert torch.equal(found, compressor.load(finished_run[1] / "family", size.name)(**inputs).logits)


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
        found = compressor.load(output / "family", size.name)(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(found, expected)
        logits.append(found)
    assert len({tuple(x.flatten().tolist()) for x in logits}) == 4


def test_the_manifest_describes_the_files(finished_run: Finished) -> None:
    folder = finished_run[1] / "family"
    family = read_manifest(folder)
    assert [size.name for size in family.sizes] == ["w1.00-d1.00", "w0.50-d1.00", "w1.00-d0.50", "w0.50-d0.50"]
    assert family.task["id2label"] == {"0": "negative", "1": "positive"}
    # What was written behind the export is told by itself.
    assert {path.name for path in folder.iterdir()} == {*family.files, "family.json", "README.md", "sizes.csv"}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())
    for name, file in family.files.items():
        assert file == {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        assert checked_file(folder, family, name) == folder / name
    for size in family.sizes:
        assert set(size.metrics) == {"torch", "fp32", "int8"} and set(size.latency_ms) == {"fp32", "int8"}
        assert size.metrics["torch"] == size.metrics["fp32"]
        assert size.parity["fp32_difference"] < 1e-4 and 0.5 <= size.parity["int8_agreement"] <= 1
        assert compressor.load(folder, size.name).num_parameters() == size.parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, _: os.truncate(folder / "model.safetensors", 5000), "its bytes have changed; export it again"),
        (lambda folder, _: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing; .* lists it"),
        (lambda _, value: value["files"].pop("model.safetensors"), "is none of the files that it lists"),
        (lambda _, value: value.update(format=1), "format 1; this version of compressor reads 2; export"),
        (lambda _, value: value.update(format=3), "format 3; this version of compressor reads 2$"),
        (lambda _, value: value["sizes"][3].update(heads=[9, 9]), "heads"),
    ],
)
def test_a_family_that_was_changed_is_refused(
    run_copy: Finished, change: Callable[[Path, dict[str, Any]], Any], message: str
) -> None:
    folder = run_copy[1] / "family"
    value = json.loads((folder / "family.json").read_text())
    change(folder, value)
    (folder / "family.json").write_text(json.dumps(value))
    with pytest.raises((CompressorError, ValueError), match=message):
        compressor.load(folder, "w0.50-d0.50")


def test_what_a_manifest_names_must_lie_in_its_folder(finished_run: Finished, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("secret")
    (tmp_path / "family").mkdir()
    family = read_manifest(finished_run[1] / "family")
    known = {"../elsewhere": {"bytes": 6, "sha256": sha256(tmp_path / "elsewhere")}}
    with pytest.raises(CompressorError, match=r"\.\./elsewhere leaves the family's folder"):
        checked_file(tmp_path / "family", replace(family, files=known), "../elsewhere")


def test_an_unknown_size_is_told(finished_run: Finished) -> None:
    with pytest.raises(CompressorError, match=r"size: there is no 'w0\.50-d0\.05'; did you mean 'w0\.50-d0\.50'"):
        compressor.load(finished_run[1] / "family", "w0.50-d0.05")


def test_a_weights_file_that_was_cut_off_is_told(exported: tuple[SuperNetwork, Path], tmp_path: Path) -> None:
    whole = (exported[1] / "model.safetensors").read_bytes()
    for length in (0, 5, 200, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(CompressorError, match="cut"):
            read_index(tmp_path / "cut")


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
        ('{"format": 99}', "format 99; this version of compressor reads 2"),
        ('{"format": 2}', "is no manifest of a family"),
        ('{"format": 2, "sizes": [{"name": "x"}]}', "is no manifest of a family"),
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
    found = interleaved(calls, 4, lambda: order.append("|"))  # type: ignore[arg-type]
    assert "".join(order) == "aaabbb" + "ab|" * 4 and set(found) == {"a", "b"}
