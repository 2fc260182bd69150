"""Batches of token ids, in an order that a run can be put back into."""

from collections.abc import Iterator
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding
from transformers.trainer_pt_utils import LengthGroupedSampler

from compressor.seeds import seed_of
from compressor.tasks import Task, label_tensor

Batch = dict[str, Tensor]


class Batches:
    """Token ids in batches, each padded to its own longest text.

    Args:
        rows: what `data.tokenise` gave. A column `row` is what `numbers` tells, and goes into no batch.
        seed: draws the order of each epoch; texts of similar length share a batch. None keeps the order of the rows.
        multiple: of tokens that batches are padded to: few different shapes where each costs a kernel of its own.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        task: Task,
        tokenizer: Any,
        batch_size: int,
        seed: int | None = None,
        multiple: int = 1,
    ) -> None:
        self._rows = rows.remove_columns("row") if "row" in rows.column_names else rows
        self._numbers = rows["row"][:] if "row" in rows.column_names else range(1, len(rows) + 1)
        self._task = task
        self._pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple if multiple > 1 else None)
        self._batch_size = batch_size
        self._seed = seed
        self._lengths = [len(ids) for ids in rows["input_ids"]] if seed is not None else []

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def order(self, epoch: int) -> list[list[int]]:
        """Row numbers (from 0) of each batch of an epoch: a function of the seed and the epoch alone."""
        places = list(range(len(self._rows)))
        if self._seed is not None:
            generator = torch.Generator().manual_seed(seed_of(self._seed, "epoch", epoch))
            places = list(LengthGroupedSampler(self._batch_size, lengths=self._lengths, generator=generator))
        return [places[start : start + self._batch_size] for start in range(0, len(places), self._batch_size)]

    def steps(self, done: int, total: int) -> Iterator[tuple[int, list[int], Batch]]:
        """Epoch (from 1), row numbers and batch of each step behind `done`, from as many epochs as they take."""
        step = done
        while step < total:
            epoch, skip = divmod(step, len(self))
            for places, batch in zip(self.order(epoch)[skip:], self.epoch(epoch, skip), strict=True):
                if step == total:
                    return
                step += 1
                yield epoch + 1, self.numbers(places), batch

    def numbers(self, places: list[int]) -> list[int]:
        """Where rows stand in the file that they came from, from 1."""
        return [self._numbers[place] for place in places]

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, without the first `skip` of them."""
        order = self.order(number)[skip:]
        # Pinned memory is copied to a GPU while it still computes the step before.
        pinned = torch.cuda.is_available()
        return iter(DataLoader(self._rows, batch_sampler=order, collate_fn=self._collate, pin_memory=pinned))

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        labels = [row.pop("labels") for row in rows if "labels" in row]
        batch = dict(self._pad(rows))
        if labels:
            batch["labels"] = label_tensor(self._task, labels)
        return batch


def split_labels(batch: Batch) -> tuple[Batch, Tensor | None]:
    """A batch without its labels, and the labels."""
    return {name: value for name, value in batch.items() if name != "labels"}, batch.get("labels")
