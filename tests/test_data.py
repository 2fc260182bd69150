"""Reading, labels and tokens: what files may hold, and what each fault is told."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressor.data import encode_labels, read, task_of, tokenise
from compressor.errors import CompressorError
from compressor.generator import statements
from compressor.models import new_tokenizer
from compressor.recipe import ClassificationSettings, FileData, GeneratedData, HubData, RegressionSettings, ScratchModel
from compressor.tasks import Classification, Regression

CLASSIFY = ClassificationSettings(type="text-classification")


def files(path: Path, **options: Any) -> FileData:
    return FileData(train=str(path), validation=str(path), **options)


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


TEXTS, LABELS = ["good film", '" a lone mark', "null"], [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", 'sentence\tlabel\ngood film\t1\n" a lone mark\t0\nnull\t1\n'),
        ("a.tsv", b'\xef\xbb\xbfsentence\tlabel\r\ngood film\t1\r\n" a lone mark\t0\r\nnull\t1\r\n'),
        ("a.csv", 'sentence,label\ngood film,1\n""" a lone mark",0\nnull,1\n'),
        (
            "a.jsonl",
            '{"sentence": "good film", "label": 1}\n{"sentence": "\\" a lone mark", "label": 0}\n'
            '{"sentence": "null", "label": 1}\n',
        ),
    ],
)
def test_formats(tmp_path: Path, name: str, text: str | bytes) -> None:
    table = read(files(written(tmp_path, name, text)), "train", 0)
    assert table.column("text") == TEXTS and table.column("label") == LABELS


def test_parquet_and_pairs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": TEXTS, "a": TEXTS[::-1], "score": [0.5, 1.0, 2.0]}), tmp_path / "a.parquet")
    settings = files(tmp_path / "a.parquet", text="q", text_pair="a", label="score")
    table = read(settings, "validation", 0)
    assert table.column("text_pair") == TEXTS[::-1]
    task = task_of(RegressionSettings(type="text-regression"), table, None)
    assert isinstance(task, Regression) and encode_labels(task, table) == [0.5, 1.0, 2.0]


def test_a_folder_stands_in_for_the_hub(tmp_path: Path) -> None:
    written(tmp_path, "train.csv", "sentence,label\ngood film,1\nbad film,0\n")
    written(tmp_path, "test.csv", "sentence,label\nfine film,1\n")
    settings = HubData(hub=str(tmp_path), validation_split="test")
    assert read(settings, "train", 0).column("text") == ["good film", "bad film"]
    assert read(settings, "validation", 0).column("text") == ["fine film"]


def test_an_unreachable_hub_names_the_way_out() -> None:
    with pytest.raises(CompressorError, match=r"data\.hub: no/such cannot be loaded.*data\.train=FILE"):
        read(HubData(hub="no/such"), "train", 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "", "is empty"),
        ("a.tsv", "sentence\tlabel\n", "holds no rows"),
        ("a.tsv", "sentense\tlabel\nx\t1\n", "has no column 'sentence'; did you mean 'sentense'?"),
        ("a.tsv", "sentence\tlabel\nx\t1\n \t0\n", "row 2: data.text is ' ', not a text"),
        ("a.csv", "sentence,label\nx,1,2,3\ny,1\nz,1,2,3,4,5\n", "cannot be read as csv"),
        ("a.jsonl", '{"sentence": "x", \n', "cannot be read as jsonl"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        ("a.tsv", b"sentence\tlabel\n\xff\xfe\t1\n", "cannot be read as tsv"),
        ("a.xlsx", "x", "is none of .tsv, .csv"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(CompressorError) as caught:
        read(files(written(tmp_path, name, text)), "train", 0)
    assert message in str(caught.value)


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(CompressorError, match=r"data\.validation: there is no file .*nowhere\.tsv"):
        read(files(tmp_path / "nowhere.tsv"), "validation", 0)


def test_labels_of_the_training_data_are_the_known_ones(tmp_path: Path) -> None:
    train = read(files(written(tmp_path, "a.tsv", "sentence\tlabel\nx\tno\ny\tyes\n")), "train", 0)
    task = task_of(CLASSIFY, train, None)
    assert isinstance(task, Classification) and task.labels == ("no", "yes")
    assert encode_labels(task, train) == [0, 1]
    other = read(files(written(tmp_path, "b.tsv", "sentence\tlabel\nx\tno\ny\tmaybe\n")), "validation", 0)
    with pytest.raises(CompressorError, match=r"b\.tsv, row 2: the label 'maybe' is none of the known ones: no, yes"):
        encode_labels(task, other)


def test_labels_of_a_trained_teacher_win(tmp_path: Path) -> None:
    train = read(files(written(tmp_path, "a.tsv", "sentence\tlabel\nx\t1\ny\t0\n")), "train", 0)
    assert encode_labels(task_of(CLASSIFY, train, ("LABEL_0", "LABEL_1")), train) == [1, 0]
    with pytest.raises(CompressorError, match="row 1: the label 1 is none of the known ones: good, bad"):
        encode_labels(task_of(CLASSIFY, train, ("good", "bad")), train)


def test_whole_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    text = "sentence\tlabel\n" + "".join(f"x{label}\t{label}\n" for label in (10, 9, 2))
    task = task_of(CLASSIFY, read(files(written(tmp_path, "a.tsv", text)), "train", 0), None)
    assert isinstance(task, Classification) and task.labels == ("2", "9", "10")


@pytest.mark.parametrize(
    ("labels", "message"), [("0.5 1.5", "text-regression learns a number"), ("1 1", "a classifier needs two labels")]
)
def test_labels_that_make_no_classes(tmp_path: Path, labels: str, message: str) -> None:
    text = "sentence\tlabel\n" + "".join(f"x\t{label}\n" for label in labels.split())
    table = read(files(written(tmp_path, "a.tsv", text)), "train", 0)
    with pytest.raises(CompressorError, match=message):
        task_of(CLASSIFY, table, None)


def test_a_regression_label_must_be_a_finite_number(tmp_path: Path) -> None:
    for value in ("high", "nan"):
        table = read(files(written(tmp_path, "a.tsv", f"sentence\tlabel\nx\t1.5\ny\t{value}\n")), "train", 0)
        with pytest.raises(CompressorError, match=f"row 2: the label '?{value}'? is not a number"):
            encode_labels(Regression(), table)


def test_train_limit_draws_with_the_seed() -> None:
    settings = GeneratedData(generator="statements", train=50, validation=20, train_limit=10)
    first, again, other = (read(settings, "train", seed).column("text") for seed in (1, 1, 2))
    assert len(first) == 10 and first == again and first != other
    assert len(read(settings, "validation", 1).rows) == 20


def test_generated_splits_share_no_sentence() -> None:
    settings = GeneratedData(generator="statements", train=300, validation=100)
    train, validation = (set(read(settings, split, 0).column("text")) for split in ("train", "validation"))
    assert not train & validation


def test_generated_labels_follow_the_grammar() -> None:
    rows = {row["sentence"]: row["label"] for row in statements(3000, seed=1)}
    plain = re.compile(r"the \w+ is (\w+)")
    simple = {match[1]: label for text, label in rows.items() if (match := plain.fullmatch(text))}
    assert simple["good"] == simple["clever"] == "positive" and simple["dull"] == simple["flat"] == "negative"
    assert len(simple) > 20
    shares = sum(label == "positive" for label in rows.values()) / len(rows)
    assert 0.45 < shares < 0.55


def test_long_texts_are_cut_and_pairs_joined(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": ["x " * 50, "y"], "b": ["y", "x"], "label": [0, 1]}), tmp_path / "a.parquet")
    table = read(files(tmp_path / "a.parquet", text="a", text_pair="b"), "train", 0)
    tokenizer = new_tokenizer(ScratchModel(), ["x y"])
    rows = tokenise(table, [0, 1], tokenizer, 12)
    assert [len(ids) for ids in rows["input_ids"]] == [12, 5]
    assert rows["token_type_ids"][1] == [0, 0, 0, 1, 1]
