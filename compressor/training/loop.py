"""The training loop: several sub-networks a step, one optimiser step for all of them, and nothing lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers import get_linear_schedule_with_warmup

from compressor.interruption import Interruption, Stopped
from compressor.losses.shares import shares
from compressor.processes import Processes
from compressor.seeds import seed_of
from compressor.settings import TrainingSettings
from compressor.supernet.subnetworks import Subnetwork
from compressor.training.batches import Batch, Batches
from compressor.training.checkpoints import Checkpoints
from compressor.training.gradients import Gradients
from compressor.training.monitor import Monitor
from compressor.training.records import Records
from compressor.training.sampling import Sampler
from compressor.training.step import GradientStep, Losses
from compressor.training.stream import Stream
from compressor.training.watch import Place, Watch

# Lines of metrics.jsonl that a stage gets.
_LINES = 100


@dataclass
class Best:
    """The best weights that a monitor has seen; none before its first look."""

    score: float = float("-inf")
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Training:
    """Trains sub-networks of one super-network.

    Gradients of all sub-networks are summed, over processes too, clipped and applied once a step, as in DynaBERT.
    Every step draws from a seed of its own, and every epoch has an order of its own: a checkpoint at any step goes on
    to the weights of a run that was never cut off, bit for bit.

    Attributes:
        step: the gradients of one batch.
        sizes: by name.
        sampler: which of them a step trains.
        seed: of everything that is drawn.
        monitor: looks at chosen sizes meanwhile, if any.
    """

    step: GradientStep
    sizes: Mapping[str, Subnetwork]
    sampler: Sampler
    settings: TrainingSettings
    processes: Processes
    records: Records
    checkpoints: Checkpoints
    interruption: Interruption
    seed: int
    monitor: Monitor | None = None

    def __post_init__(self) -> None:
        self._supernet = self.step.supernet
        self._device = self.processes.device
        self._terms = self.step.objective.terms
        self._watch = Watch(tuple(self.sizes))
        self.best = Best()

    def run(self, batches: Batches | Stream) -> None:
        """Train for the epochs (or `max_steps`) of the settings, from the newest checkpoint if there is one.

        Raises:
            CompressorError: a loss is no longer finite, or a checkpoint cannot be written; what was saved stays.
            Stopped: somebody asked for it; a checkpoint of the last step is saved.
        """
        total = steps_of(self.settings, len(batches))
        self._prepare(total)
        done = self._restore()
        self._supernet.train(True)
        with self.interruption.deferred():
            for step, (epoch, rows, batch) in enumerate(batches.steps(done, total), start=done + 1):
                place = Place(step, epoch, rows)
                self._train(place, batch)
                self._look(place, total)
                self.records.shown.advance()
                self._save_or_stop(place.step)
        self._supernet.train(False)
        if self.best.weights:
            self._supernet.model.load_state_dict(self.best.weights)

    def _prepare(self, total: int) -> None:
        model = self._supernet.model.to(self._device)
        if self.step.teacher:
            self.step.teacher.supernet.model.to(self._device)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._gradients = Gradients(parameters, len(self.sizes) * len(self._terms))
        self._optimizer = optimizer_of(parameters, self.settings.learning_rate, self.settings.weight_decay)
        warmup = int(self.settings.warmup * total)
        self._schedule = get_linear_schedule_with_warmup(self._optimizer, warmup, total)

    def _train(self, place: Place, batch: Batch) -> None:
        self._seed(seed_of(self.seed, "step", place.step, self.processes.rank))
        sizes = self.sampler(place.step)
        self._gradients.zero()
        self._add_gradients(batch, sizes)
        with record_function("reduce"):
            self._gradients.reduce(self.processes)
        with record_function("optimizer"):
            norm = self._gradients.clip(self.settings.max_grad_norm)
            losses = self._gradients.losses.view(len(self.sizes), len(self._terms))
            self._watch.note(place, losses.sum(1), norm)
            if self._device.type == "cpu":
                # Looking costs nothing here; elsewhere it would make the device wait at every step.
                self._watch.check()
            self._rate: float = self._schedule.get_last_lr()[0]
            self._optimizer.step()
            self._schedule.step()
        self.records.add(losses, tuple(sizes))

    def _seed(self, seed: int) -> None:
        # torch.manual_seed would also queue a call for every kind of device that is not there, with a stack trace.
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _add_gradients(self, batch: Batch, sizes: Mapping[str, Subnetwork]) -> None:
        """This process's part of the batch: losses and gradients in the proportion that it has in the whole."""
        part, weights = batch, None
        if self.processes.count > 1:
            part = {name: value[self.processes.rank :: self.processes.count] for name, value in batch.items()}
            if not len(part["attention_mask"]):
                return
            weights = shares(self.step.objective, batch["attention_mask"], part["attention_mask"])
        part = {name: value.to(self._device, non_blocking=True) for name, value in part.items()}
        self._note(self.step(part, sizes, weights))

    def _note(self, losses: Losses) -> None:
        """Losses beside the gradients, where they are summed over processes with them."""
        nothing = torch.zeros((), device=self._device)
        rows = [[losses.get(name, {}).get(term, nothing) for term in self._terms] for name in self.sizes]
        self._gradients.losses.copy_(torch.stack([value for row in rows for value in row]))

    def _look(self, place: Place, total: int) -> None:
        """Lines of the record, and the monitor's look."""
        every = max(1, total // _LINES)
        if place.step % every == 0 or place.step == total:
            self._watch.check()
            self.records.write({"step": place.step, "epoch": place.epoch, "learning_rate": self._rate})
        if self.monitor and self.processes.main and self.monitor.due(place.step, total):
            scores = self.monitor.score(self._supernet)
            mean = sum(scores.values()) / len(scores)
            better = mean > self.best.score
            if better:
                self.best = Best(mean, place.step, self._weights() if self.monitor.keeps_best else {})
            self.records.write_scores(place.step, scores, better)

    def _save_or_stop(self, step: int) -> None:
        stops = self.processes.any(self.interruption.requested is not None)
        if self.processes.main and (stops or self.checkpoints.due()):
            self._watch.check()
            self.checkpoints.save(step, self._state(step))
        if stops:
            number = self.interruption.requested or Interruption.SIGNALS[-1]
            raise Stopped(f"stopped after step {step}, which is saved; the same command goes on from there", number)

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._supernet.model.state_dict().items()}

    def _state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "model": self._supernet.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "records": self.records.state(),
            "usual": self._watch.usual,
            "best": vars(self.best),
        }

    def _restore(self) -> int:
        """The step that was done last; 0 where nothing was saved."""
        state = self.checkpoints.newest()
        if state is None:
            self.records.restore(None, self._device)
            return 0
        self._supernet.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.records.restore(state["records"], self._device)
        self._watch.usual = state["usual"]
        self.best = Best(**state["best"])
        step: int = state["step"]
        return step


def steps_of(settings: TrainingSettings, batches: int) -> int:
    """Steps that a stage takes for epochs of so many batches."""
    planned = settings.epochs * batches
    return min(planned, settings.max_steps or planned)


def optimizer_of(parameters: Sequence[Tensor], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with BERT's epsilon, one kernel for a whole step."""
    return torch.optim.AdamW(parameters, lr=learning_rate, eps=1e-8, weight_decay=weight_decay, fused=True)
