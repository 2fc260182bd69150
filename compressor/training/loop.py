"""The training loop: several sub-networks a step, one optimiser step for all of them."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from compressor.errors import CompressorError
from compressor.progress import Progress
from compressor.settings import ObjectiveSettings, TrainingSettings
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Task
from compressor.training.batches import Batch, Batches
from compressor.training.step import GradientStep
from compressor.training.teacher import Teacher


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
        optimizer = optimizer_of(parameters, self.settings.learning_rate, self.settings.weight_decay)
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
        """Add the gradients of all sizes for one batch."""
        step = GradientStep(self.supernet, self.objective, self.task, self.teacher)
        for name, losses in step(batch, self.sizes).items():
            for term, value in losses.items():
                self._note(f"size {name}", value)
                self._note(f"term {term}", value)

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


def optimizer_of(parameters: list[Tensor], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with BERT's epsilon, one kernel for a whole step."""
    return torch.optim.AdamW(parameters, lr=learning_rate, eps=1e-8, weight_decay=weight_decay, fused=True)


def _endless(batches: Batches, steps: int) -> Iterator[Batch]:
    """As many batches as there are steps, from as many epochs as they take."""
    done = 0
    for epoch in itertools.count():
        for batch in batches.epoch(epoch):
            if done == steps:
                return
            done += 1
            yield batch
