"""Batches of a corpus that is read as it goes by, so that it may be larger than the memory."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

from compressor.errors import CompressorError
from compressor.seeds import seed_of
from compressor.training.batches import Batch

# Batches' worth of texts that are tokenised together, and grouped by length.
_WINDOW = 50


class Stream:
    """Token ids of a corpus in batches; texts longer than `max_length` go on in further rows.

    Texts of a window are grouped by length, so that little is padded, and its batches come in a drawn order. To go on
    from a step, the texts before it are read and tokenised again, which is quick beside training on them.

    Args:
        texts: the corpus in the order of an epoch (from 0).
        steps: that are taken of it, in as many epochs as that needs.
        masked: hide 15% of the words, as BERT's pre-training does; labels say which they were.
        multiple: of tokens that batches are padded to.
    """

    def __init__(
        self,
        texts: Callable[[int], Iterable[str]],
        tokenizer: Any,
        *,
        steps: int,
        batch_size: int,
        max_length: int,
        seed: int,
        masked: bool = False,
        multiple: int = 1,
    ) -> None:
        self._texts, self._tokenizer, self._steps = texts, tokenizer, steps
        self._batch_size, self._max_length, self._seed = batch_size, max_length, seed
        padded = multiple if multiple > 1 else None
        self._collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=padded)
        if masked:
            self._collate = DataCollatorForLanguageModeling(tokenizer, pad_to_multiple_of=padded, seed=seed)
        self._masked = masked

    def __len__(self) -> int:
        return self._steps

    def steps(self, done: int, total: int) -> Iterator[tuple[int, list[int], Batch]]:
        """Epoch (from 1), numbers of the texts in it (from 1) and batch of each step behind `done`.

        Raises:
            CompressorError: the corpus holds no text.
        """
        for step, (epoch, numbers, rows) in enumerate(islice(self._endless(), total), start=1):
            if step > done:
                yield epoch, numbers, self._batch(rows, step)

    def _endless(self) -> Iterator[tuple[int, list[int], list[dict[str, Any]]]]:
        epoch = 0
        while True:
            found = False
            for place, window in enumerate(_windows(self._texts(epoch), _WINDOW * self._batch_size)):
                found = True
                for numbers, rows in self._grouped(window, seed_of(self._seed, "corpus", epoch, place)):
                    yield epoch + 1, numbers, rows
            if not found:
                raise CompressorError("corpus: there is no text in it")
            epoch += 1

    def _grouped(self, window: list[tuple[int, str]], seed: int) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        numbers, texts = zip(*window, strict=True)
        encoded = dict(
            self._tokenizer(list(texts), truncation=True, max_length=self._max_length, return_overflowing_tokens=True)
        )
        origin = encoded.pop("overflow_to_sample_mapping")
        order = sorted(range(len(origin)), key=lambda place: len(encoded["input_ids"][place]))
        groups = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        for group in torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist():
            rows = [{name: values[place] for name, values in encoded.items()} for place in groups[group]]
            yield [numbers[origin[place]] for place in groups[group]], rows

    def _batch(self, rows: list[dict[str, Any]], step: int) -> Batch:
        if self._masked:
            # Of its own for every step: a run that goes on hides the same words.
            self._collate.generator = torch.Generator().manual_seed(seed_of(self._seed, "mask", step))
        return dict(self._collate(rows))


def _windows(texts: Iterable[str], count: int) -> Iterator[list[tuple[int, str]]]:
    """Texts that are not empty, numbered from 1, so many at a time."""
    numbered = enumerate((text for text in texts if text.strip()), start=1)
    while window := list(islice(numbered, count)):
        yield window
