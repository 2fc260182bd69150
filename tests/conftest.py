"""Fixtures: tiny random models for logic, one whole tiny run for everything that needs a family."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from compressor.generator import statements
from compressor.models import new_tokenizer
from compressor.progress import Progress
from compressor.recipe import ScratchModel
from compressor.supernet.supernetwork import SuperNetwork

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of specifications and data beside the checkout: CI must have it."""
    if not SHARED.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{SHARED} is missing, and CI must not skip what needs it")
        pytest.skip(f"{SHARED} is not here")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> ModuleType:
    """Values computed with the CKD authors' code."""
    spec = importlib.util.spec_from_file_location("golden", shared / "spec" / "golden.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLASSES: dict[str, tuple[Any, Any]] = {
    "bert": (BertConfig, BertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
}


def tiny_model(kind: str = "bert", seed: int = 0, **changes: Any) -> Any:
    """A random model: 4 layers, 4 heads, 32 wide, 64 neurons; biases and norms are random too."""
    config_class, model_class = CLASSES[kind]
    options = {
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "vocab_size": 60,
        "max_position_embeddings": 40,
        "pad_token_id": 1,
        "num_labels": 3,
    }
    torch.manual_seed(seed)
    model = model_class(config_class(**{**options, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_inputs(batch: int = 3, length: int = 9, seed: int = 1) -> dict[str, torch.Tensor]:
    """Token ids with right padding in the first row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    ids[mask == 0] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(params=["bert", "roberta"])
def supernet(request: pytest.FixtureRequest) -> SuperNetwork:
    return SuperNetwork(tiny_model(request.param))


def write_data(folder: Path, train: int = 120, validation: int = 60) -> None:
    """`train.tsv` and `dev.tsv` of generated sentences."""
    rows = statements(train + validation, seed=3)
    for name, part in (("train.tsv", rows[:train]), ("dev.tsv", rows[train:])):
        lines = ["sentence\tlabel", *(f"{row['sentence']}\t{row['label']}" for row in part)]
        (folder / name).write_text("\n".join(lines) + "\n")


def tiny_recipe(folder: Path) -> dict[str, Any]:
    """Every stage, on the data of `folder`, as small as it goes."""
    training = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3}
    return {
        "version": 1,
        "seed": 7,
        "model": {"layers": 2, "heads": 4, "hidden": 32, "intermediate": 64, "max_positions": 40},
        "task": {"type": "text-classification", "metric": "accuracy"},
        "data": {"train": str(folder / "train.tsv"), "validation": str(folder / "dev.tsv"), "max_length": 32},
        "family": {"widths": [1.0, 0.5], "depths": [1.0, 0.5]},
        "stages": [
            {"type": "finetune", **training},
            {"type": "reorder", "examples": 64},
            {"type": "width", **training},
            {"type": "depth", **training},
            {"type": "finetune_family", **training},
            # A model that has learnt next to nothing answers near the border, where int8 flips labels.
            {"type": "export", "int8_agreement": 0.5, "int8_max_drop": 0.5, "examples": 32},
            {"type": "evaluate"},
            {"type": "benchmark", "rounds": 2, "length": 16},
            {"type": "report"},
        ],
    }


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder without a head and its tokenizer, as the hub has them."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = new_tokenizer(ScratchModel(), [row["sentence"] for row in statements(200, seed=3)])
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_folder(tmp_path: Path) -> Path:
    """A folder with data and `recipe.yaml`."""
    write_data(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path)))
    return tmp_path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One whole tiny run: the folder of its recipe and data, and its output. Not to be changed: see `run_copy`."""
    from compressor.engine import run
    from compressor.recipe import load_recipe

    folder = tmp_path_factory.mktemp("tiny")
    write_data(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(folder)))
    run(load_recipe(str(folder / "recipe.yaml")), folder / "run", Progress(Console(quiet=True)))
    return folder, folder / "run"


@pytest.fixture
def run_copy(finished_run: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The recipe of the finished run and a copy of its output that may be changed."""
    folder, output = finished_run
    shutil.copytree(output, tmp_path / "run")
    return folder / "recipe.yaml", tmp_path / "run"


@pytest.fixture
def quiet() -> Progress:
    return Progress(Console(quiet=True))
