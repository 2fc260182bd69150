"""Loading and tokenising: local files and hub data sets, by the `datasets` library."""

import csv
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from compressor.errors import CompressorError, nearest, one_line
from compressor.files import fitting
from compressor.recipe import FileData, GeneratedData, HubData
from compressor.settings import FileCorpus, HubCorpus
from compressor.tasks import Classification, Regression, Task

SUFFIXES = {".tsv": "csv", ".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
CORPUS_SUFFIXES = {".txt": "text", **SUFFIXES}


@dataclass(frozen=True)
class Table:
    """Rows as they came: columns `text`, `text_pair` (if any), `label` (if any), `row`, and where they came from.

    `row` counts from 1 and stays with a row when others are left out.
    """

    rows: datasets.Dataset
    source: str

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        return list(self.rows[name])


Split = Literal["train", "validation", "unlabelled"]


def read(settings: FileData | HubData | GeneratedData, split: Split, seed: int) -> Table:
    """One split of a recipe's data with its columns renamed to `text`, `text_pair` and `label` (not `unlabelled`).

    Args:
        seed: draws the rows when `train_limit` asks for fewer than there are.

    Raises:
        CompressorError: a file or column is missing, a file is empty or cannot be read, a text is empty.
    """
    rows, source = _load(settings, split)
    if not len(rows):
        raise CompressorError(f"data.{split}: {source} holds no rows")
    label = None if split == "unlabelled" else settings.label
    wanted = {"text": settings.text, "text_pair": settings.text_pair, "label": label}
    columns = {new: old for new, old in wanted.items() if old is not None}
    for new, old in columns.items():
        if old not in rows.column_names:
            raise CompressorError(f"data.{new}: {source} has no column {old!r}{nearest(old, rows.column_names)}")
    found = {new: rows[old][:] for new, old in columns.items()} | {"row": list(range(1, len(rows) + 1))}
    table = Table(datasets.Dataset.from_dict(found), source)
    _check_texts(table)
    if split == "train" and settings.train_limit is not None and settings.train_limit < len(table.rows):
        table = Table(table.rows.shuffle(seed=seed).select(range(settings.train_limit)), source)
    return table


def _load(settings: FileData | HubData | GeneratedData, split: Split) -> tuple[datasets.Dataset, str]:
    if isinstance(settings, FileData):
        path = getattr(settings, split)
        return _load_file(Path(path), f"data.{split}"), path
    if isinstance(settings, HubData):
        name = getattr(settings, f"{split}_split")
        return _load_hub(settings, name), f"{settings.hub} ({name})"
    from compressor.generator import statements

    rows = statements(settings.train + settings.validation, settings.generator_seed)
    rows = rows[: settings.train] if split == "train" else rows[settings.train :]
    return datasets.Dataset.from_list(rows), f"generated {split} statements"


def _load_file(path: Path, key: str) -> datasets.Dataset:
    if not path.is_file():
        raise CompressorError(f"{key}: there is no file {path}")
    if path.suffix not in SUFFIXES:
        raise CompressorError(f"{key}: {path} is none of {', '.join(SUFFIXES)}")
    if not path.stat().st_size:
        raise CompressorError(f"{key}: {path} is empty")
    # A cache of its own: the shared one would outlive a file that is edited within the clock's resolution.
    with tempfile.TemporaryDirectory() as cache:
        try:
            return datasets.load_dataset(
                SUFFIXES[path.suffix],
                data_files=str(path),
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
                **_options(path.suffix),
            )
        except Exception as error:  # pandas, pyarrow and datasets each raise their own
            cause = error.__cause__ or error
            if "corresponds to no data" in str(cause):
                return datasets.Dataset.from_dict({})
            raise CompressorError(f"{key}: {path} cannot be read as {path.suffix[1:]}: {one_line(cause)}") from error


def _options(suffix: str) -> dict[str, Any]:
    """How files of a kind are read."""
    options: dict[str, Any] = {}
    if suffix in (".csv", ".tsv"):
        # `null` and `NA` are words like any other; a byte-order mark is none.
        options = {"encoding": "utf-8-sig", "keep_default_na": False}
    if suffix == ".tsv":
        # As in GLUE's files nothing is quoted: a lone quotation mark belongs to the sentence.
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    return options


def _load_hub(settings: HubData, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(settings.hub, settings.config, split=split, revision=settings.revision)
    except Exception as error:  # connection, permission, unknown name, unknown split: all the user's to mend
        raise CompressorError(
            f"data.hub: {settings.hub} cannot be loaded: {one_line(error)}; local files are given as "
            "data.train=FILE data.validation=FILE"
        ) from error


# Texts that are held back to draw the next one from.
_SHUFFLED = 10_000


def open_corpus(settings: FileCorpus | HubCorpus, seed: int) -> Callable[[int], Iterable[str]]:
    """A corpus as a function from an epoch to its texts, which are read as they go by, in the epoch's own order.

    Raises:
        CompressorError: a file is missing or cannot be read, or has no such column; also while texts are read.
    """
    rows = _stream(settings)
    with _reading_corpus(settings):
        first: dict[str, Any] | None = next(iter(rows), None)
    if first is None:
        raise CompressorError("corpus: there is no text in it")
    if settings.text not in first:
        raise CompressorError(f"corpus.text: there is no column {settings.text!r}{nearest(settings.text, first)}")
    _text(first[settings.text], settings.text)
    shuffled = rows.shuffle(seed=seed, buffer_size=_SHUFFLED)

    def texts(epoch: int) -> Iterator[str]:
        shuffled.set_epoch(epoch)
        with _reading_corpus(settings):
            for row in shuffled:
                yield _text(row[settings.text], settings.text)

    return texts


def _text(value: Any, column: str) -> str:
    if value is not None and not isinstance(value, str):
        raise CompressorError(f"corpus.text: column {column!r} holds {value!r}, not a text")
    return value or ""


def corpus_files(settings: FileCorpus) -> list[Path]:
    """The files of a corpus, patterns resolved.

    Raises:
        CompressorError: a name fits no file, or files are of different kinds.
    """
    found: list[Path] = []
    for pattern in settings.patterns:
        files = fitting(pattern)
        if not files:
            raise CompressorError(f"corpus.files: no file fits {pattern}")
        found += files
    kinds = {path.suffix for path in found}
    if len(kinds) > 1 or not kinds <= CORPUS_SUFFIXES.keys():
        raise CompressorError(
            f"corpus.files: one of {', '.join(CORPUS_SUFFIXES)} is needed, not {', '.join(sorted(kinds))}"
        )
    return found


def _stream(settings: FileCorpus | HubCorpus) -> datasets.IterableDataset:
    if isinstance(settings, FileCorpus):
        files = corpus_files(settings)
        suffix, names = files[0].suffix, [str(path) for path in files]
        if CORPUS_SUFFIXES[suffix] == "csv":
            return datasets.IterableDataset.from_generator(_csv_rows, gen_kwargs={"files": names})
        with _reading_corpus(settings):
            return datasets.load_dataset(CORPUS_SUFFIXES[suffix], data_files=names, split="train", streaming=True)
    with _reading_corpus(settings):
        return datasets.load_dataset(
            settings.hub, settings.config, split=settings.split, revision=settings.revision, streaming=True
        )


def _csv_rows(files: list[str]) -> Iterator[dict[str, Any]]:
    # The reader of `datasets` leaves a file open that is not read to its end.
    for file in files:
        with pd.read_csv(file, chunksize=_SHUFFLED, **_options(Path(file).suffix)) as tables:
            for table in tables:
                yield from table.to_dict("records")


@contextmanager
def _reading_corpus(settings: FileCorpus | HubCorpus) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        source = settings.hub if isinstance(settings, HubCorpus) else settings.files
        raise CompressorError(f"corpus: {source} cannot be read: {one_line(error)}") from error


def _check_texts(table: Table) -> None:
    for name in ("text", "text_pair"):
        if name not in table.rows.column_names:
            continue
        for row, value in zip(table.column("row"), table.column(name), strict=True):
            if not isinstance(value, str) or not value.strip():
                raise CompressorError(f"{table.source}, row {row}: data.{name} is {value!r}, not a text")


def task_of(settings: Any, train: Table, known_labels: tuple[str, ...] | None) -> Task:
    """The task of a recipe's `task:` section, with its labels.

    Args:
        known_labels: those of a teacher that is trained already; None takes those of the training data.

    Raises:
        CompressorError: fewer than two labels, or labels that look like numbers on a scale.
    """
    if settings.type == "text-regression":
        return Regression(metric=settings.metric)
    if known_labels is None:
        if "label" not in train.rows.column_names:
            raise CompressorError(
                "data.label: labels are needed to fine-tune a teacher; name the column, or give a model that is "
                "fine-tuned already"
            )
        known_labels = _labels_in(train)
    return Classification(labels=known_labels, metric=settings.metric)


def _labels_in(table: Table) -> tuple[str, ...]:
    values = set(table.column("label"))
    if any(isinstance(value, float) for value in values):
        raise CompressorError(
            f"{table.source}: data.label holds fractions ({min(values)} to {max(values)}), not classes; "
            "task.type=text-regression learns a number"
        )
    whole = all(isinstance(value, int) for value in values)
    labels = tuple(str(value) for value in (sorted(values) if whole else sorted(map(str, values))))
    if len(labels) < 2:
        raise CompressorError(f"{table.source}: data.label holds only {labels[0]!r}; a classifier needs two labels")
    return labels


def encode_labels(task: Task, table: Table) -> list[int] | list[float] | None:
    """Labels as the task's loss takes them: class indices or numbers; None where the data has no label column.

    Raises:
        CompressorError: naming file and row, for a label that the task does not know.
    """
    if "label" not in table.rows.column_names:
        return None
    if isinstance(task, Regression):
        return [_number(value, row, table.source) for row, value in _numbered_labels(table)]
    assert isinstance(task, Classification)
    index = {label: place for place, label in enumerate(task.labels)}
    # A hub model without label names calls them LABEL_0, LABEL_1: data says 0, 1.
    if all(label == f"LABEL_{place}" for label, place in index.items()):
        index |= {str(place): place for place in range(len(task.labels))}
    encoded = []
    for row, value in _numbered_labels(table):
        if str(value) not in index:
            raise CompressorError(
                f"{table.source}, row {row}: the label {value!r} is none of the known ones: {', '.join(task.labels)}"
            )
        encoded.append(index[str(value)])
    return encoded


def _numbered_labels(table: Table) -> Iterator[tuple[int, Any]]:
    return zip(table.column("row"), table.column("label"), strict=True)


def _number(value: Any, row: int, source: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise CompressorError(f"{source}, row {row}: the label {value!r} is not a number")
    return number


def tokenise(
    table: Table, labels: list[int] | list[float] | None, tokenizer: Any, max_length: int, behind: int = 0
) -> datasets.Dataset:
    """Token ids of every row, not padded, its `row` (counted on behind others), and `labels` where there are any."""
    pairs = table.column("text_pair") if "text_pair" in table.rows.column_names else None
    encoded = dict(tokenizer(table.column("text"), pairs, truncation=True, max_length=max_length))
    encoded["row"] = [behind + row for row in table.column("row")]
    if labels is not None:
        encoded["labels"] = labels
    return datasets.Dataset.from_dict(encoded)


def by_length(rows: datasets.Dataset) -> NDArray[np.int64]:
    """Places of tokenised rows, the shortest first."""
    return np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable")


def shortest_first(rows: datasets.Dataset) -> datasets.Dataset:
    """Tokenised rows by length: batches of them are padded little."""
    return rows.select(by_length(rows))
