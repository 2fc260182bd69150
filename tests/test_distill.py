"""Distilling into students of any shape, from labelled rows, from texts beside them and from a corpus."""

import gc
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, BertConfig

from compressor import load
from compressor.data import open_corpus
from compressor.engine import run
from compressor.errors import CompressorError
from compressor.fingerprints import stage_fingerprints
from compressor.generator import statements
from compressor.interruption import Interruption, Stopped
from compressor.models import new_tokenizer
from compressor.progress import Progress
from compressor.recipe import ScratchModel, check_recipe
from compressor.settings import FileCorpus, NewStudent
from compressor.students import layers_of, new_student, student_config, take_over
from compressor.tasks import MaskedWords
from compressor.training import Stream
from tests.conftest import tiny_recipe, write_data


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> None:
    write_data(tmp_path)


def results(folder: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["result"] for path in folder.glob("stages/*/stage.json")}


def test_texts_without_labels_are_distilled_on_and_nothing_else(tmp_path: Path, quiet: Progress) -> None:
    value = tiny_recipe(tmp_path)
    more = [row["sentence"] for row in statements(30, seed=9)]
    (tmp_path / "more.tsv").write_text("\n".join(["sentence", *more]) + "\n")
    value["data"]["unlabelled"] = str(tmp_path / "more.tsv")
    value["stages"] = value["stages"][:3]
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    results = {
        path.parent.name: json.loads(path.read_text())["result"]
        for path in (tmp_path / "run").glob("stages/*/stage.json")
    }
    assert results["01-finetune"].startswith("120 examples") and "150 examples" in results["03-width"]
    before = stage_fingerprints(check_recipe(value, "r"))
    (tmp_path / "more.tsv").write_text("\n".join(["sentence", *more[1:]]) + "\n")
    after = stage_fingerprints(check_recipe(value, "r"))
    assert before[:2] == after[:2] and before[2] != after[2]

    value["stages"][2]["objective"] = {"logits": 1.0, "labels": 1.0}
    with pytest.raises(
        CompressorError, match=r"stages\[2\] \(width\): the objective weighs labels, and the texts of data"
    ):
        check_recipe(value, "r")
    value["stages"][2].pop("objective")
    (tmp_path / "more.tsv").write_text("text\nno such column\n")
    with pytest.raises(CompressorError, match=r"data\.text: .*more\.tsv has no column 'sentence'"):
        run(check_recipe(value, "r"), tmp_path / "another", quiet)


def student_recipe(folder: Path, **stage: Any) -> dict[str, Any]:
    """A teacher of 4 layers, 32 wide with 4 heads into a student of 2 layers, 24 wide with 3 heads."""
    value = tiny_recipe(folder)
    value["family"] = {"widths": [1.0], "depths": [1.0]}
    distill = {
        "type": "distill",
        "student": {"layers": 2, "hidden": 24, "heads": 3, "intermediate": 40},
        "batch_size": 32,
        "learning_rate": 1e-3,
        "epochs": 1,
        **stage,
    }
    kinds = ("export", "evaluate", "benchmark", "report")
    finetune, *rest = value["stages"]
    value["stages"] = [finetune, distill, *(other for other in rest if other["type"] in kinds)]
    return value


def test_a_student_of_another_shape_goes_the_whole_way(tmp_path: Path, quiet: Progress) -> None:
    recipe = check_recipe(student_recipe(tmp_path), "r")
    run(recipe, tmp_path / "run", quiet)
    family = json.loads((tmp_path / "run" / "family" / "family.json").read_text())
    (size,) = family["sizes"]
    assert (size["heads"], size["neurons"], len(size["kept_layers"])) == ([3, 3], [40, 40], 2)
    assert family["teacher"]["parameters"] > size["parameters"]
    assert set(size["metrics"]) == {"torch", "fp32", "int8"}
    model = load(tmp_path / "run" / "family", size["name"])
    assert model.config.hidden_size == 24
    # The bias of the classifier alone has the same shape.
    assert "of the teacher's parameters, 1 of its" in results(tmp_path / "run")["02-distill"]


def test_a_student_begins_with_layers_of_its_teacher(tmp_path: Path, quiet: Progress) -> None:
    shape = {"layers": 2, "hidden": 32, "heads": 4, "intermediate": 64}
    value = student_recipe(tmp_path, student=shape, init_layers=[1, 4], max_steps=1, learning_rate=1e-12)
    value["stages"] = value["stages"][:2]
    value["model"]["layers"] = 4
    value["model"]["intermediate"] = 64
    value["model"]["hidden"] = 32
    value["model"]["heads"] = 4
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "stages" / name)
        for name in ("01-finetune", "02-distill")
    )
    for own, taken in ((0, 0), (1, 3)):
        ours = student.bert.encoder.layer[own].intermediate.dense.weight
        torch.testing.assert_close(ours, teacher.bert.encoder.layer[taken].intermediate.dense.weight, rtol=0, atol=1e-9)
    torch.testing.assert_close(student.classifier.weight, teacher.classifier.weight, rtol=0, atol=1e-9)
    assert "41 of its 41 tensors from the teacher" in results(tmp_path / "run")["02-distill"]
    value["stages"][1]["init_layers"] = "none"
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    assert "9 of its 41 tensors from the teacher" in results(tmp_path / "run")["02-distill"]


def test_a_family_can_be_cut_from_a_student(tmp_path: Path, quiet: Progress) -> None:
    value = tiny_recipe(tmp_path)
    distill = student_recipe(tmp_path, student={"layers": 4, "hidden": 24, "heads": 4, "intermediate": 40})["stages"][1]
    value["stages"] = [value["stages"][0], distill, *value["stages"][1:4]]
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "stages" / "05-depth")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (24, 4)


RELATIONS = {"word_pair": 1.0, "word_angle": 10.0, "layer_pair": 1.0, "layer_angle": 10.0}


def corpus_recipe(folder: Path, encoder: Path, **stage: Any) -> dict[str, Any]:
    """The encoder into a smaller one on texts of two files, then fine-tuning, then export."""
    texts = [row["sentence"] for row in statements(150, seed=4)]
    (folder / "a.txt").write_text("\n".join(texts[:100]) + "\n\n")
    (folder / "b.txt").write_text("\n".join(texts[100:]) + "\n")
    corpus = {"files": str(folder / "*.txt")}
    options = {"corpus": corpus, "max_steps": 12, "objective": RELATIONS, **stage}
    value = student_recipe(folder, **options)
    value["model"] = str(encoder)
    value["stages"][:2] = reversed(value["stages"][:2])
    return value


@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_an_encoder_is_distilled_on_a_corpus_and_then_fine_tuned(
    masked: float, tmp_path: Path, encoder: Path, quiet: Progress
) -> None:
    value = corpus_recipe(tmp_path, encoder, objective={**RELATIONS, "labels": masked}, max_steps=100)
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    distilled = tmp_path / "run" / "stages" / "01-distill"
    config = json.loads((distilled / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM" if masked else "BertModel"] and config["hidden_size"] == 24
    lines = [json.loads(line) for line in (distilled / "metrics.jsonl").read_text().splitlines()]
    for term in ("word_angle", "labels") if masked else ("word_angle",):
        first, last = (sum(line["terms"][term] for line in part) for part in (lines[:20], lines[-20:]))
        assert last < 0.9 * first, term
    family = json.loads((tmp_path / "run" / "family" / "family.json").read_text())
    assert [size["name"] for size in family["sizes"]] == ["w1.00-d1.00"]
    assert results(tmp_path / "run")["02-finetune"].startswith("120 examples")


def test_a_corpus_that_was_cut_off_goes_on_to_the_same_weights(tmp_path: Path, encoder: Path, quiet: Progress) -> None:
    """Epochs of 150 texts in batches of 32: the steps run over the end of the corpus, and words are hidden."""
    value = corpus_recipe(tmp_path, encoder, objective={**RELATIONS, "labels": 1.0})
    value["stages"], value["checkpoints"] = value["stages"][:1], {"minutes": 0}
    recipe = check_recipe(value, "r")
    run(recipe, tmp_path / "whole", quiet)

    class Interrupted(Interruption):
        """Asks to stop after a few steps."""

        looks = 0

        @property
        def requested(self) -> int | None:  # type: ignore[override]
            self.looks += 1
            return 15 if self.looks == 7 else None

        @requested.setter
        def requested(self, _: int | None) -> None: ...

    with pytest.raises(Stopped, match="after step 7"):
        run(recipe, tmp_path / "cut", quiet, Interrupted())
    run(recipe, tmp_path / "cut", quiet)
    whole, cut = (load_file(tmp_path / name / "stages/01-distill/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def stream(texts: list[str], **options: Any) -> Stream:
    tokenizer = new_tokenizer(ScratchModel(), ["a b c d e f g h"])
    return Stream(lambda _: texts, tokenizer, **{"steps": 100, "batch_size": 4, "max_length": 6, "seed": 0, **options})


def test_long_texts_go_on_in_further_rows_and_nothing_is_lost() -> None:
    texts = ["a b c d e f g", "", "h", "a b"]
    found = []
    for epoch, numbers, batch in stream(texts).steps(0, 1):
        assert epoch == 1 and sorted(numbers) == [1, 1, 2, 3]
        for number, ids in zip(numbers, batch["input_ids"].tolist(), strict=True):
            found += [(number, token) for token in ids if token > 4]
    assert sorted(number for number, _ in found) == [1] * 7 + [2] + [3] * 2


def test_batches_of_a_corpus_come_in_the_order_of_seed_and_epoch() -> None:
    texts = [" ".join("abcdefgh"[: 1 + place % 4]) for place in range(900)]
    rows = [numbers for _, numbers, _ in stream(texts).steps(0, 300)]
    assert sorted(number for batch in rows[:225] for number in batch) == list(range(1, 901))
    assert rows[225:300] != rows[:75]
    assert {epoch for epoch, _, _ in stream(texts).steps(224, 226)} == {1, 2}
    assert [numbers for _, numbers, _ in stream(texts).steps(200, 300)] == rows[200:]
    with pytest.raises(CompressorError, match="no text in it"):
        next(iter(stream(["", " "]).steps(0, 1)))


def test_batches_of_a_corpus_are_of_like_lengths() -> None:
    texts = [" ".join("abcd"[: 1 + place % 4]) for place in range(160)]
    for _, _, batch in stream(texts).steps(0, 40):
        assert batch["attention_mask"].all()


def test_a_corpus_need_not_end() -> None:
    assert len(list(stream(["a b"]).steps(0, 7))) == 7  # in epochs of one text
    endless = stream(itertools.repeat("a b"))  # type: ignore[arg-type]
    assert len(list(endless.steps(0, 60))) == 60


def test_every_step_hides_other_words() -> None:
    batches = [batch for _, _, batch in stream(["a b c d"] * 200, masked=True).steps(0, 20)]
    assert len({tuple(batch["labels"].flatten().tolist()) for batch in batches}) > 10


def test_hidden_words_of_a_text_are_averaged() -> None:
    logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 3, 8, -100], [-100, -100, -100, 5]])
    of_texts = [functional.cross_entropy(*both) for both in zip(logits, labels, strict=True)]
    torch.testing.assert_close(MaskedWords().label_loss(logits, labels), (of_texts[0] + of_texts[1]) / 2)
    assert MaskedWords().label_loss(logits, torch.full_like(labels, -100)) == 0


def test_students_begin_where_their_settings_say() -> None:
    assert layers_of(6, 3) == (2, 4, 6) and layers_of(6, 6) == (1, 2, 3, 4, 5, 6) and layers_of(2, 4) == ()
    teacher = student_config(NewStudent(layers=2, hidden=64, heads=4, intermediate=128), BertConfig(vocab_size=50))
    student = new_student(teacher, masked_words=False)
    assert student.bert.encoder.layer[0].intermediate.dense.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    copied, tensors = take_over(student, new_student(teacher, masked_words=False), ())
    # Without layers of the teacher: five of its embeddings, pooler and classifier.
    assert (copied, tensors) == (9, 41)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps": None}, r"max_steps: missing; a corpus is read as it goes by"),
        ({"objective": {"logits": 1.0}}, "the objective weighs logits, and texts of a corpus have no task"),
        ({"corpus": {"files": "nowhere/*.txt"}}, "no file fits nowhere"),
        ({"corpus": {"files": "numbers.jsonl"}}, r"corpus\.text: column 'text' holds 3, not a text"),
        ({"corpus": {"files": "empty.txt"}}, "corpus: there is no text in it"),
        ({"corpus": {"files": "numbers.jsonl", "text": "txet"}}, "there is no column 'txet'; did you mean 'text'"),
        ({"corpus": {"files": "bytes.txt"}}, r"bytes\.txt cannot be read: .*invalid start byte"),
        ({"corpus": {"files": "x.txt", "txt": "text"}}, r"corpus\.txt: unknown key; did you mean 'text'"),
        ({"objective": {"hidden_mse": 1.0}}, "the teacher's is 32, the student's 24; relations"),
        ({"objective": {"word_pair": 1.0, "matching": "last-3"}}, "teacher and student have 4 and 2 layers"),
        (
            {"objective": {"layer_pair": 1.0, "matching": "last-2"}},
            "2 matched states have no layer_pair, which need three",
        ),
        ({"init_layers": [1, 2, 3]}, r"init_layers \[1, 2, 3\]: the student has 2 layers"),
        ({"init_layers": [1, 5]}, r"init_layers \[1, 5\]: the student has 2 layers, and each begins with .* 1 to 4"),
        ({"student": {"layers": 2, "hidden": 25, "heads": 3, "intermediate": 4}}, "3 attention heads do not divide"),
        ({"student": {"layers": 2, "hidden": 24, "heads": 3}}, r"student\.intermediate: missing"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    encoder: Path,
    quiet: Progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("numbers.jsonl").write_text('{"text": 3}\n')
    Path("empty.txt").write_text("")
    Path("bytes.txt").write_bytes(b"\xff\xfe\x00\x81\n")
    with pytest.raises(CompressorError, match=message):
        run(check_recipe(corpus_recipe(tmp_path, encoder, **change), "r"), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_words_that_look_like_nothing_are_words(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text\nNA\nnull\n")
    texts = open_corpus(FileCorpus(files=str(tmp_path / "texts.csv")), seed=0)
    assert sorted(texts(0)) == ["NA", "null"]


def test_texts_of_a_corpus_come_in_another_order_each_epoch(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"{number}\n" for number in range(100)))
    first, second, again = (
        list(open_corpus(FileCorpus(files=str(tmp_path / "texts.txt")), seed=0)(epoch)) for epoch in (0, 1, 0)
    )
    assert sorted(first) == sorted(second) and first != second and first == again


def test_a_corpus_that_is_not_read_to_its_end_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text\n" + "some words\n" * 50_000)
    texts = iter(open_corpus(FileCorpus(files=str(path)), seed=0)(0))
    assert next(texts) == "some words"
    del texts
    gc.collect()  # A file that is still open is warned of here, and warnings fail the test.


def test_a_student_of_another_vocabulary_is_refused(tmp_path: Path, encoder: Path, quiet: Progress) -> None:
    other = tmp_path / "other"
    shutil.copytree(encoder, other)
    new_tokenizer(ScratchModel(), ["other words"]).save_pretrained(other)
    with pytest.raises(CompressorError, match="has another vocabulary than the teacher"):
        run(check_recipe(corpus_recipe(tmp_path, encoder, student=str(other)), "r"), tmp_path / "run", quiet)
    value = corpus_recipe(tmp_path, encoder, student=str(encoder))
    value["stages"] = value["stages"][:1]
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    assert "100% of the teacher's parameters" in results(tmp_path / "run")["01-distill"]


def test_order_of_the_stages_is_checked(tmp_path: Path, encoder: Path) -> None:
    value = corpus_recipe(tmp_path, encoder)
    value["stages"][:2] = reversed(value["stages"][:2])
    with pytest.raises(CompressorError, match="put finetune behind distill, or leave corpus out"):
        check_recipe(value, "r")
    value = student_recipe(tmp_path, objective=RELATIONS)
    with pytest.raises(
        CompressorError,
        match=r"stages\[1\] \(distill\)\.objective: word_pair, .* without logits or labels: relations do not",
    ):
        check_recipe(value, "r")
