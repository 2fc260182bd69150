"""Steps of each training stage against plain loops, interleaved in one run.

    .venv/bin/python benchmarks/training.py --lengths SST-2
    .venv/bin/python benchmarks/training.py --lengths MRPC --stages depth

Prints examples a second, ratios, the peak of the memory that a step allocates, and where compressor's time goes.

A plain loop is what one writes first: batches in a drawn order, the teacher once a step, then each sub-network through
autograd's own slices of the parameters, embeddings and all. `to 128` pads every batch to 128 tokens as the reference
code does, `to batch` to the longest text of the batch. All see texts of the same lengths; compressor's are grouped
by length, and its batches are taken evenly from a drawn pool of 50, the longest ones too.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from memory import peak_bytes
from torch.func import functional_call
from torch.profiler import profile, record_function
from transformers import BertConfig, BertForSequenceClassification

from compressor.losses.objective import Outputs, geometry, terms
from compressor.settings import ObjectiveSettings
from compressor.supernet.subnetworks import Subnetwork, grid, paired_states
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Classification
from compressor.training import Batch, Batches, GradientStep, Sandwich, Teacher, optimizer_of
from compressor.training.gradients import Gradients

# Tokens a text at these quantiles of GLUE's training files, cut by MiniLM's tokenizer.
QUANTILES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1)
LENGTHS = {
    "SST-2": (3, 4, 5, 6, 8, 10, 12, 16, 20, 23, 27, 31, 33, 37, 41, 46, 50, 56, 66),
    "MRPC": (19, 36, 41, 45, 49, 53, 57, 61, 64, 67, 70, 73, 74, 78, 80, 84, 87, 94, 103),
}
# Encoders: layers, heads, hidden, neurons.
MODELS = {"minilm": (6, 12, 384, 1536), "base": (12, 12, 768, 3072), "tiny": (4, 4, 32, 64)}
BATCH = 32
TASK = Classification(("0", "1"))
OBJECTIVES = {
    "dynabert": ObjectiveSettings(logits=1.0, hidden_mse=0.1),
    "ckd": ObjectiveSettings(logits=1.0, word_pair=1.0, word_angle=10.0, layer_pair=1.0, layer_angle=10.0),
}
LABELS = ObjectiveSettings(labels=1.0)
STAGES = {"finetune": ((1.0,), (1.0,)), "width": ((1.0, 0.75, 0.5, 0.25), (1.0,))}
STAGES |= dict.fromkeys(("depth", "finetune_family"), ((1.0, 0.75, 0.5, 0.25), (1.0, 0.75, 0.5)))


class _Pad:
    """The part of a tokenizer that pads."""

    padding_side = "right"

    def pad(self, features: list[dict[str, Any]], **_: Any) -> Batch:
        longest = max(len(row["input_ids"]) for row in features)
        return {
            key: torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in features])
            for key in ("input_ids", "attention_mask")
        }


def rows(lengths: str, count: int, seed: int) -> datasets.Dataset:
    """Random token ids of a data set's lengths."""
    draw = np.random.default_rng(seed)
    sizes = np.interp(draw.random(count), QUANTILES, LENGTHS[lengths]).round().astype(int)
    ids = [draw.integers(1000, 30000, size).tolist() for size in sizes]
    labels = draw.integers(0, 2, count).tolist()
    return datasets.Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * len(x) for x in ids], "labels": labels}
    )


def model(name: str) -> Any:
    """A random encoder with BERT's dropout."""
    layers, heads, hidden, neurons = MODELS[name]
    return BertForSequenceClassification(
        BertConfig(num_hidden_layers=layers, num_attention_heads=heads, hidden_size=hidden, intermediate_size=neurons)
    )


@dataclass
class Plain:
    """A loop over sub-networks as one writes it first."""

    student: SuperNetwork
    teacher: Any
    sizes: dict[str, Subnetwork]
    objective: ObjectiveSettings
    half: bool

    def __post_init__(self) -> None:
        self.teacher.eval().requires_grad_(False)
        self.student.train(True)
        self.optimizer = torch.optim.AdamW(self.student.model.parameters(), lr=2e-5)
        self.skeletons = {}
        for size in self.sizes.values():
            config = copy.deepcopy(self.student.model.config)
            config.num_hidden_layers = len(size.kept)
            with torch.device("meta"):
                self.skeletons[len(size.kept)] = BertForSequenceClassification(config).train()

    def step(self, batch: Batch) -> None:
        """One optimiser step."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        taught = None
        if self.objective.uses_teacher:
            with torch.no_grad(), self.precision(batch):
                taught = self.teacher(**inputs, output_hidden_states=True)
        for size in self.sizes.values():
            with self.precision(batch):
                loss = self.loss(size, inputs, taught, batch["labels"])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def precision(self, batch: Batch) -> torch.autocast:
        """What forward passes run under."""
        return torch.autocast(batch["labels"].device.type, torch.bfloat16, enabled=self.half)

    def loss(self, size: Subnetwork, inputs: Batch, taught: Any, labels: torch.Tensor) -> torch.Tensor:
        """The objective of one sub-network, through slices that autograd sees."""
        tensors = {name: view.of(self.student.tensors[view.source]) for name, view in self.student.views(size).items()}
        options = {**inputs, "output_hidden_states": taught is not None}
        output = functional_call(self.skeletons[len(size.kept)], tensors, args=(), kwargs=options)
        said, answer = Outputs(output.logits), None
        if taught is not None:
            chosen = paired_states(size.kept, self.student.dimensions.layers, "paper")
            mask, states = inputs["attention_mask"], tuple(taught.hidden_states[index] for index in chosen)
            said = Outputs(output.logits, geometry(self.objective, output.hidden_states, mask))
            answer = Outputs(taught.logits, geometry(self.objective, states, mask))
        found = terms(self.objective, TASK, said, answer, labels)
        return torch.stack(list(found.values())).sum()


class Ours:
    """The step of `compressor.training`."""

    def __init__(self, student: SuperNetwork, teacher: Any, plain: Plain) -> None:
        self.sizes, self.parameters = plain.sizes, list(student.model.parameters())
        taught_by = None
        if plain.objective.uses_teacher:
            supernet = SuperNetwork(teacher)
            taught_by = Teacher(supernet, dict.fromkeys(self.sizes, supernet.whole), "paper")
        student.train(True)
        self.gradients = GradientStep(student, plain.objective, TASK, taught_by, plain.half)
        self.optimizer = optimizer_of(self.parameters, 2e-5, 0.01)
        self.flat = Gradients(self.parameters, losses=0)
        costs = {name: student.parameters(size) for name, size in self.sizes.items()}
        self.sampler, self.count = Sandwich(self.sizes, costs, drawn=1, seed=0), 0

    def step(self, batch: Batch) -> None:
        """One optimiser step of all sizes."""
        self.step_of(batch, self.sizes)

    def sandwich_step(self, batch: Batch) -> None:
        """One optimiser step of the largest size, the smallest, and one drawn."""
        self.count += 1
        self.step_of(batch, self.sampler(self.count))

    def step_of(self, batch: Batch, sizes: Mapping[str, Subnetwork]) -> None:
        """One optimiser step of some sizes."""
        self.flat.zero()
        self.gradients(batch, sizes)
        with record_function("optimizer"):
            self.flat.clip(1.0)
            self.optimizer.step()


PARTS = ("teacher", "embeddings", "forward", "losses", "backward", "optimizer")
KINDS = ("to 128", "to batch", "compressor", "sandwich")
Step = Callable[[Batch], None]


def batches(lengths: str, count: int) -> Iterator[dict[str, Batch]]:
    """The same number of batches for each kind of loop."""
    pool = rows(lengths, 50 * BATCH, seed=0)
    drawn, grouped = Batches(pool, TASK, _Pad(), BATCH), list(Batches(pool, TASK, _Pad(), BATCH, seed=0))
    chosen = [grouped[int((place + 0.5) * len(grouped) / count)] for place in range(count)]
    for plain, ours in zip(drawn, chosen, strict=False):
        yield {"to 128": _padded(plain, 128), "to batch": plain, "compressor": ours, "sandwich": ours}


def _padded(batch: Batch, length: int) -> Batch:
    missing = length - batch["input_ids"].shape[1]
    return {
        name: value if name == "labels" else torch.nn.functional.pad(value, (0, missing))
        for name, value in batch.items()
    }


def seconds(step: Step, batch: Batch, device: torch.device) -> float:
    """Wall-clock seconds of a step, until the device is done."""
    batch = on_device(batch, device)
    _wait(device)
    start = time.perf_counter()
    step(batch)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the step computes."""
    return {name: value.to(device) for name, value in batch.items()}


def shares(step: Step, batch: Batch, device: torch.device) -> dict[str, float]:
    """The part of a step's time that each of its scopes takes, on the host's clock."""
    batch = on_device(batch, device)
    with profile() as recorded:
        start = time.perf_counter()
        step(batch)
        _wait(device)
        whole = time.perf_counter() - start
    found = {event.key: event.cpu_time_total / 1e6 / whole for event in recorded.key_averages() if event.key in PARTS}
    return {part: found.get(part, 0.0) for part in PARTS}


def compare(stage: str, options: argparse.Namespace, device: torch.device) -> None:
    """Measure one stage and print its lines."""
    torch.manual_seed(0)
    student, teacher = model(options.model).to(device), model(options.model).to(device)
    supernet = SuperNetwork(student)
    sizes = grid(supernet.dimensions, *STAGES[stage])
    objective = OBJECTIVES[options.objective] if stage in ("width", "depth") else LABELS
    plain = Plain(supernet, teacher, sizes, objective, options.precision == "bf16")
    ours = Ours(SuperNetwork(copy.deepcopy(student)), teacher, plain)
    steps: dict[str, Step] = {"to 128": plain.step, "to batch": plain.step, "compressor": ours.step}
    steps["sandwich"] = ours.sandwich_step
    left_out = {kind for kind, out in (("to 128", options.skip_128), ("sandwich", len(sizes) < 3)) if out}
    kinds = [kind for kind in KINDS if kind not in left_out]
    found = list(batches(options.lengths, options.steps))
    for kind in kinds:
        # The first step allocates, and compiles kernels.
        seconds(steps[kind], found[0][kind], device)
    taken = {kind: [] for kind in kinds}
    for batch in found:
        for kind in kinds:
            taken[kind].append(seconds(steps[kind], batch[kind], device))
    middle = found[len(found) // 2]
    memory = {kind: peak_bytes(partial(steps[kind], on_device(middle[kind], device)), device) for kind in kinds}
    parts = shares(steps["compressor"], middle["compressor"], device)
    rates = {kind: BATCH / statistics.fmean(taken[kind]) for kind in kinds}
    for kind in kinds:
        ratio = rates["compressor"] / rates[kind]
        print(f"{stage:16s} {kind:11s} {rates[kind]:8.1f} {ratio:7.2f}x {memory[kind] / 2**20:8.0f} MiB")
    shown = ", ".join(f"{part} {100 * share:.0f}%" for part, share in parts.items() if share > 0.005)
    print(f"{'':16s} parts: {shown}", flush=True)


def main() -> None:
    """Measure every stage that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", choices=LENGTHS, default="SST-2")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--objective", choices=OBJECTIVES, default="dynabert")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--skip-128", action="store_true", help="leave out the loop padded to 128")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(
        f"{options.model}, {options.lengths} lengths, batch {BATCH}, {options.steps} steps, {options.objective}, "
        f"{options.precision}, {device.type}, {torch.get_num_threads()} threads"
    )
    print(f"{'stage':16s} {'loop':11s} {'ex./s':>8s} {'ratio':>8s} {'peak':>12s}")
    for stage in options.stages:
        compare(stage, options, device)


if __name__ == "__main__":
    main()
