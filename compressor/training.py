"""The training loop: several sub-networks a step, one optimiser step for all of them."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import LengthGroupedSampler

from compressor.errors import CompressorError
from compressor.losses.objective import Outputs, stack_states, terms
from compressor.progress import Progress
from compressor.settings import ObjectiveSettings, TrainingSettings
from compressor.supernet.subnetworks import DepthRule, Subnetwork, paired_states
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Array, Task, label_tensor

Batch = dict[str, Tensor]


class Batches:
    """Token ids in batches, each padded to its own longest text.

    Args:
        rows: what `data.tokenise` gave.
        seed: draws the order; texts of similar length share a batch. None keeps the order of the rows.
    """

    def __init__(
        self, rows: datasets.Dataset, task: Task, tokenizer: Any, batch_size: int, seed: int | None = None
    ) -> None:
        self._task = task
        self._pad = DataCollatorWithPadding(tokenizer)
        sampler = None
        if seed is not None:
            lengths = [len(ids) for ids in rows["input_ids"]]
            generator = torch.Generator().manual_seed(seed)
            sampler = LengthGroupedSampler(batch_size, lengths=lengths, generator=generator)
        self._loader = DataLoader(rows, batch_size=batch_size, sampler=sampler, collate_fn=self._collate)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        labels = [row.pop("labels") for row in rows if "labels" in row]
        batch = dict(self._pad(rows))
        if labels:
            batch["labels"] = label_tensor(self._task, labels)
        return batch


def split_labels(batch: Batch) -> tuple[Batch, Tensor | None]:
    """A batch without its labels, and the labels."""
    return {name: value for name, value in batch.items() if name != "labels"}, batch.get("labels")


@dataclass(frozen=True)
class Teacher:
    """The model that is distilled, and which sub-network of it teaches each size.

    Attributes:
        supernet: its weights do not change, its dropout is off.
        sizes: by the student's name; equal ones are run once a batch.
        rule: how the students' hidden states are paired with the teacher's.
    """

    supernet: SuperNetwork
    sizes: Mapping[str, Subnetwork]
    rule: DepthRule

    def __post_init__(self) -> None:
        self.supernet.train(False)
        self.supernet.model.requires_grad_(False)

    @torch.no_grad()
    def answer(self, inputs: Batch, students: Mapping[str, Subnetwork], states: bool) -> dict[str, Outputs]:
        """Logits and paired states for every student of a batch."""
        embeddings = self.supernet.embed(inputs)
        outputs = {
            size: self.supernet.run(size, embeddings, inputs["attention_mask"], hidden_states=states)
            for size in set(self.sizes.values())
        }
        layers = self.supernet.dimensions.layers
        # Students of one depth are compared with the same states: they are stacked once for all widths.
        shared: dict[tuple[Subnetwork, tuple[int, ...]], Outputs] = {}
        answers = {}
        for name, student in students.items():
            key = (self.sizes[name], paired_states(student.kept, layers, self.rule))
            if key not in shared:
                output = outputs[key[0]]
                shared[key] = Outputs(output.logits, stack_states(output.hidden_states, key[1]) if states else None)
            answers[name] = shared[key]
        return answers


@dataclass
class Training:
    """Trains sub-networks of one super-network towards an objective.

    Gradients of all sizes are summed, clipped and applied once a step, as in DynaBERT.

    Attributes:
        sizes: by name; one optimiser step sees each of them.
        teacher: needed where the objective has a term of distillation.
        log: a JSON-lines file that losses are written to.
    """

    supernet: SuperNetwork
    sizes: Mapping[str, Subnetwork]
    objective: ObjectiveSettings
    settings: TrainingSettings
    task: Task
    progress: Progress
    log: Path
    teacher: Teacher | None = None
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def run(self, batches: Batches, title: str) -> None:
        """Train for the epochs (or `max_steps`) of the settings.

        Raises:
            CompressorError: a loss is no longer finite; what was trained before the stage is untouched.
        """
        device = Accelerator().device
        self.supernet.model.to(device)
        if self.teacher:
            self.teacher.supernet.model.to(device)
        total = self._steps(len(batches))
        parameters = [p for p in self.supernet.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.settings.learning_rate,
            eps=1e-8,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        schedule = get_linear_schedule_with_warmup(optimizer, int(self.settings.warmup * total), total)
        every = max(1, total // 100)
        self.supernet.train(True)
        with self.progress.task(title, total) as shown, self.log.open("a") as log:
            for step, batch in enumerate(_endless(batches, total), start=1):
                self._step({name: value.to(device) for name, value in batch.items()})
                torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
                rate = schedule.get_last_lr()[0]
                optimizer.step()
                schedule.step()
                # Kept and filled with zeros: the slices' gradients are added into them at every step.
                optimizer.zero_grad(set_to_none=False)
                if step % every == 0 or step == total:
                    losses = self._collect(step, every if step % every == 0 else step % every)
                    log.write(json.dumps({"step": step, "learning_rate": rate, **losses}) + "\n")
                    shown.note(f"loss {losses['loss'] / len(self.sizes):.4f}")
                shown.advance()
        self.supernet.train(False)

    def _steps(self, batches: int) -> int:
        planned = self.settings.epochs * batches
        return min(planned, self.settings.max_steps or planned)

    def _step(self, batch: Batch) -> None:
        """Add the gradients of all sizes for one batch; embeddings run forward and backward once for all."""
        inputs, labels = split_labels(batch)
        mask = inputs["attention_mask"]
        answers = self.teacher.answer(inputs, self.sizes, self.objective.uses_states) if self.teacher else {}
        embeddings = self.supernet.embed(inputs)
        shared = embeddings.detach().requires_grad_()
        for name, size in self.sizes.items():
            leaves = self.supernet.inner_views(size, detached=True)
            output = self.supernet.run(size, shared, mask, tensors=leaves, hidden_states=self.objective.uses_states)
            states = stack_states(output.hidden_states) if self.objective.uses_states else None
            losses = terms(self.objective, self.task, Outputs(output.logits, states), answers.get(name), mask, labels)
            total = torch.stack(list(losses.values())).sum()
            total.backward()
            self.supernet.add_gradients(size, leaves)
            self._note(f"size {name}", total)
            for term, value in losses.items():
                self._note(f"term {term}", value)
        embeddings.backward(shared.grad)

    def _note(self, key: str, value: Tensor) -> None:
        """Sum on the device: asking for the number would make a GPU wait at every step."""
        self._sums[key] = self._sums.get(key, torch.zeros_like(value)) + value.detach()

    def _collect(self, step: int, steps: int) -> dict[str, Any]:
        means = {key: float(value) / steps for key, value in self._sums.items()}
        self._sums.clear()
        by_kind: dict[str, dict[str, float]] = {"size": {}, "term": {}}
        for key, value in means.items():
            kind, name = key.split(" ", 1)
            by_kind[kind][name] = value
        broken = [name for name, value in by_kind["size"].items() if not math.isfinite(value)]
        if broken:
            raise CompressorError(
                f"the loss of {broken[0]} is {by_kind['size'][broken[0]]} within the {steps} steps up to step {step}; "
                "a smaller learning_rate or smaller weights of the objective may help"
            )
        return {"loss": sum(by_kind["size"].values()), "terms": by_kind["term"], "sizes": by_kind["size"]}


def _endless(batches: Batches, steps: int) -> Iterator[Batch]:
    """As many batches as there are steps, from as many epochs as they take."""
    done = 0
    while True:
        for batch in batches:
            if done == steps:
                return
            done += 1
            yield batch


@torch.no_grad()
def predict(run: Callable[[Batch], Tensor], batches: Batches) -> Array:
    """Logits [N, outputs] of every row, in order, for a function from a batch to logits."""
    logits = [run(split_labels(batch)[0]).float().cpu() for batch in batches]
    return torch.cat(logits).numpy()


def whole_model(model: Any) -> Callable[[Batch], Tensor]:
    """A stock model as a function from a batch to logits, dropout off."""
    model.eval()
    device = next(model.parameters()).device
    return lambda batch: model(**{name: value.to(device) for name, value in batch.items()}).logits
