"""A size as a model of its own: read back by `from_pretrained`, or refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from compressor.errors import CompressorError
from compressor.models import load_config, quiet
from compressor.supernet.extraction import extract
from compressor.supernet.subnetworks import Subnetwork, grid
from compressor.supernet.supernetwork import SuperNetwork
from tests.conftest import tiny_inputs, tiny_model

UNEVEN = Subnetwork(kept=(0, 2, 3), heads=(1, 4, 2), neurons=(64, 7, 30))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with quiet():
        extract(SuperNetwork(tiny_model()), UNEVEN).save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path) -> object:
    with quiet():
        return AutoModelForSequenceClassification.from_pretrained(folder)


def test_reloaded_logits_are_identical(supernet: SuperNetwork, tmp_path: Path) -> None:
    inputs = tiny_inputs()
    for name, size in {**grid(supernet.dimensions, (1.0, 0.5), (1.0, 0.5)), "uneven": UNEVEN}.items():
        expected = supernet.run(size, supernet.embed(inputs), inputs["attention_mask"]).logits
        with quiet():
            extract(supernet, size).save_pretrained(tmp_path / name)
            again = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        assert torch.equal(again(**inputs).logits, expected)
        assert again.config.layer_heads == list(size.heads) and again.config.kept_layers == list(size.kept)


def test_a_reloaded_size_trains_further(saved: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    inputs, labels = tiny_inputs(), torch.tensor([0, 1, 2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = model(**inputs, labels=labels).loss
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < first


def test_changed_heads_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["layer_heads"] = [2, 4, 2]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompressorError, match=r"do not fit config\.json"):
        load(saved)


def test_missing_and_surplus_weights_are_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    lost = {key: value for key, value in weights.items() if key != name}
    save_file(lost, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompressorError, match=r"missing_keys.*query\.weight"):
        load(saved)
    save_file({**weights, "extra": torch.zeros(1)}, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompressorError, match=r"unexpected_keys.*extra"):
        load(saved)


def test_ignoring_mismatched_sizes_is_not_possible(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["layer_neurons"] = [64, 8, 30]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompressorError), quiet():
        AutoModelForSequenceClassification.from_pretrained(saved, ignore_mismatched_sizes=True)


def test_a_list_for_other_layers_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["layer_heads"] = [1, 4]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompressorError, match="an entry for each of the 3 layers"):
        load(saved)


def test_the_stock_class_does_not_load_it_in_silence(saved: Path) -> None:
    with pytest.raises(Exception, match=r"mismatch|size"), quiet():
        BertForSequenceClassification.from_pretrained(saved)


def test_a_size_is_not_cut_again(saved: Path) -> None:
    with pytest.raises(CompressorError, match="cut out of a family already"):
        load_config(str(saved))


@pytest.mark.parametrize(
    "imports",
    [
        "import compressor; from transformers import AutoModelForSequenceClassification as A",
        "from transformers import AutoModelForSequenceClassification as A; import compressor",
    ],
)
def test_import_compressor_is_all_that_is_needed(saved: Path, imports: str) -> None:
    code = f"{imports}; print(type(A.from_pretrained({str(saved)!r})).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "SizedBertForSequenceClassification"


def test_importing_compressor_is_light() -> None:
    code = "import sys, compressor; print([m for m in ('torch', 'transformers', 'onnxruntime') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
