"""The training loop: gradients of a plain loop, answers of teachers, what is logged."""

import copy
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch._subclasses import FakeTensorMode
from transformers import BertForSequenceClassification

from compressor.errors import CompressorError
from compressor.interruption import Interruption
from compressor.losses.hidden import hidden_mse
from compressor.losses.objective import Outputs, geometry, terms
from compressor.processes import Processes
from compressor.settings import ObjectiveSettings, TrainingSettings
from compressor.supernet.subnetworks import DepthRule, Subnetwork, grid, paired_states
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Classification, Regression
from compressor.training import Batches, Checkpoints, GradientStep, Records, Teacher, Training, everything
from tests.conftest import tiny_inputs, tiny_model

EVERYTHING = ObjectiveSettings(
    logits=1.0, labels=0.5, hidden_mse=0.1, word_pair=1.0, word_angle=10.0, layer_pair=1.0, layer_angle=10.0
)
TASK = Classification(("a", "b", "c"))


class Shown:
    """Progress that nobody looks at."""

    def advance(self) -> None: ...

    def note(self, text: str) -> None: ...


def training(student: Any, teacher: Any, folder: Path, **options: Any) -> Training:
    """All sizes of a tiny model, taught by another; `folder` takes metrics and checkpoints."""
    supernet, taught_by = SuperNetwork(student), SuperNetwork(teacher)
    sizes = grid(supernet.dimensions, (1.0, 0.5), (1.0, 0.5))
    teaching = Teacher(taught_by, dict.fromkeys(sizes, taught_by.whole), "paper")
    objective, task = options.pop("objective", EVERYTHING), options.pop("task", TASK)
    parts = {
        "sampler": everything(sizes),
        "processes": Processes(),
        "records": Records(folder / "metrics.jsonl", tuple(sizes), objective.terms, 4, Shown()),
        "checkpoints": Checkpoints(folder, seconds=1e9, keep=2),
        "interruption": Interruption(),
        "seed": 0,
        "monitor": None,
    }
    parts |= {name: options.pop(name) for name in list(options) if name in parts}
    settings = TrainingSettings(**{"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, **options})
    return Training(GradientStep(supernet, objective, task, teaching), sizes, settings=settings, **parts)


def plain_gradients(
    student: Any,
    teacher: Any,
    sizes: dict[str, Subnetwork],
    batch: dict[str, torch.Tensor],
    rule: DepthRule = "paper",
) -> Any:
    """One size after the other through autograd's own slices, everything computed anew for each."""
    supernet, taught_by = SuperNetwork(copy.deepcopy(student)), SuperNetwork(copy.deepcopy(teacher))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    mask = inputs["attention_mask"]
    for size in sizes.values():
        with torch.no_grad():
            taught = taught_by.model(**inputs, output_hidden_states=True)
        output = supernet.run(size, supernet.embed(inputs), mask, hidden_states=True)
        chosen = paired_states(size.kept, 4, rule)
        found = terms(
            EVERYTHING,
            TASK,
            Outputs(output.logits, geometry(EVERYTHING, output.hidden_states, mask)),
            Outputs(taught.logits, geometry(EVERYTHING, tuple(taught.hidden_states[i] for i in chosen), mask)),
            batch["labels"],
        )
        sum(found.values()).backward()  # type: ignore[union-attr]
    return {name: p.grad for name, p in supernet.model.named_parameters()}


def test_an_objective_says_which_states_are_compared() -> None:
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student, teacher = tiny_model(**options), tiny_model(seed=5, **options)
    supernet, taught_by = SuperNetwork(student), SuperNetwork(teacher)
    sizes = grid(supernet.dimensions, (1.0,), (1.0, 0.5))
    objective = ObjectiveSettings(logits=1, hidden_mse=1, matching="skip")
    inputs = tiny_inputs()
    step = GradientStep(supernet, objective, TASK, Teacher(taught_by, dict.fromkeys(sizes, taught_by.whole), "paper"))
    found = step(inputs, sizes)
    states = [model(**inputs, output_hidden_states=True).hidden_states for model in (teacher, student)]
    expected = sum(
        hidden_mse(states[0][i][:, None], states[1][i][:, None], inputs["attention_mask"]) for i in range(1, 5)
    )
    torch.testing.assert_close(found["w1.00-d1.00"]["hidden_mse"], expected)
    small = supernet.run(sizes["w1.00-d0.50"], supernet.embed(inputs), inputs["attention_mask"], hidden_states=True)
    expected = sum(
        hidden_mse(states[0][i][:, None], small.hidden_states[j][:, None], inputs["attention_mask"])
        for i, j in ((2, 1), (4, 2))
    )
    torch.testing.assert_close(found["w1.00-d0.50"]["hidden_mse"], expected)


@pytest.mark.parametrize("rule", ["paper", "reference"])
def test_a_step_has_the_gradients_of_a_plain_loop(rule: DepthRule) -> None:
    """Depths that begin alike, too: of four layers, 0.75 keeps 1, 2 and 4 (paper) or 1, 2 and 3 (reference)."""
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student, teacher = tiny_model(**options), tiny_model(seed=5, **options)
    batch = {**tiny_inputs(), "labels": torch.tensor([0, 2, 1])}
    supernet, taught_by = SuperNetwork(student), SuperNetwork(teacher)
    sizes = grid(supernet.dimensions, (1.0, 0.5), (1.0, 0.75, 0.5), rule)
    expected = plain_gradients(student, teacher, sizes, batch, rule)
    teaching = Teacher(taught_by, dict.fromkeys(sizes, taught_by.whole), rule)
    GradientStep(supernet, EVERYTHING, TASK, teaching)(batch, sizes)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("half", [False, True])
def test_a_step_looks_at_no_number_on_the_host(half: bool) -> None:
    """Tensors without content: whatever would make a GPU wait for its answer raises an error here."""
    with FakeTensorMode():
        supernet, taught_by = (SuperNetwork(BertForSequenceClassification(tiny_model().config)) for _ in range(2))
        supernet.train(True)
        sizes = grid(supernet.dimensions, (1.0, 0.5), (1.0, 0.5))
        teaching = Teacher(taught_by, dict.fromkeys(sizes, taught_by.whole), "paper")
        ids = torch.ones(3, 9, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": ids, "labels": ids[:, 0]}
        losses = GradientStep(supernet, EVERYTHING, TASK, teaching, half)(batch, sizes)
        torch.nn.utils.clip_grad_norm_(supernet.model.parameters(), 1.0)
    assert set(losses) == set(sizes)


def test_gradients_are_reduced_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reduced: list[torch.Tensor] = []
    monkeypatch.setattr(Processes, "sum_", lambda _, tensor: reduced.append(tensor))
    training(tiny_model(), tiny_model(seed=5), tmp_path).run(batches())
    assert len(reduced) == 6 and len({tensor.data_ptr() for tensor in reduced}) == 1
    assert reduced[0].numel() >= sum(parameter.numel() for parameter in tiny_model().parameters())


def test_processes_drop_different_elements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its own part of a batch: one mask for all of them would tie rows that have nothing in common."""
    seeds: dict[int, list[int]] = {0: [], 1: []}
    for rank in seeds:
        processes = Processes()
        processes.rank = rank
        trained = training(tiny_model(), tiny_model(seed=5), tmp_path, processes=processes)
        monkeypatch.setattr(trained, "_add_gradients", lambda *_, rank=rank: seeds[rank].append(torch.initial_seed()))
        trained.run(batches())
    assert len(set(seeds[0] + seeds[1])) == 12


def test_a_run_has_the_weights_of_a_plain_loop(tmp_path: Path) -> None:
    """Clipping, AdamW, the falling learning rate, gradients that start from zero at every step."""
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student, teacher = tiny_model(**options), tiny_model(seed=5, **options)
    plain = copy.deepcopy(student)
    trained = training(student, teacher, tmp_path, epochs=1, warmup=0.5, max_grad_norm=0.5, weight_decay=0.1)
    trained.run(batches())

    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, eps=1e-8, weight_decay=0.1)
    norms = []
    for step, batch in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = 1e-3 * (step / 3 if step < 3 else (6 - step) / 3)
        gradients = plain_gradients(plain, teacher, dict(trained.sizes), batch)
        for name, parameter in plain.named_parameters():
            parameter.grad = gradients[name]
        norms.append(torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5))
        optimizer.step()
    assert min(norms) > 0.5
    for (name, expected), found in zip(plain.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5, msg=name)


def rows(count: int = 24, labels: bool = True) -> datasets.Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 60, (4 + row % 5,), generator=generator).tolist() for row in range(count)]
    columns: dict[str, Any] = {"input_ids": ids, "attention_mask": [[1] * len(x) for x in ids]}
    if labels:
        columns["labels"] = [sum(x) % 3 for x in ids]
    return datasets.Dataset.from_dict(columns)


class Tokenizer:
    """What the collator needs of a tokenizer."""

    padding_side = "right"

    def pad(self, features: list[dict[str, Any]], **_: Any) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in features)
        return {
            key: torch.tensor([row[key] + [fill] * (length - len(row[key])) for row in features])
            for key, fill in (("input_ids", 1), ("attention_mask", 0))
        }


def batches(count: int = 24, task: Any = TASK, seed: int | None = 0) -> Batches:
    return Batches(rows(count), task, Tokenizer(), batch_size=4, seed=seed)


def test_batches_are_padded_to_their_own_longest_text() -> None:
    shapes = {tuple(batch["input_ids"].shape) for batch in batches(seed=None)}
    assert {shape[1] for shape in shapes} <= set(range(4, 9)) and len(shapes) > 1
    drawn = [batch["input_ids"] for batch in batches(200)]
    padding = sum(int((ids == 1).sum()) for ids in drawn)
    assert padding < 0.5 * sum(int((batch["input_ids"] == 1).sum()) for batch in batches(200, seed=None))
    assert [ids.tolist() for ids in drawn] == [batch["input_ids"].tolist() for batch in batches(200)]


def test_training_brings_every_size_closer_to_the_teacher(tmp_path: Path) -> None:
    student, teacher = tiny_model(), tiny_model(seed=5)
    trained = training(student, teacher, tmp_path, objective=ObjectiveSettings(logits=1, hidden_mse=1), epochs=30)
    trained.run(batches())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) >= 50 and lines[-1]["step"] == 180
    assert set(lines[0]["terms"]) == {"logits", "hidden_mse"}
    for name in trained.sizes:
        assert lines[-1]["sizes"][name] < 0.8 * lines[0]["sizes"][name]
    assert lines[0]["learning_rate"] == 1e-3 and lines[-1]["learning_rate"] < 1e-5
    assert not student.training


def test_the_teacher_does_not_change(tmp_path: Path) -> None:
    teacher = tiny_model(seed=5)
    before = copy.deepcopy(teacher.state_dict())
    training(tiny_model(), teacher, tmp_path).run(batches())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_training_is_reproducible(tmp_path: Path) -> None:
    results = []
    for _ in range(2):
        student = tiny_model()
        torch.manual_seed(3)
        training(student, tiny_model(seed=5), tmp_path).run(batches())
        results.append(student.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_max_steps_cuts_and_epochs_repeat(tmp_path: Path) -> None:
    for epochs, most, expected in ((2, None, 12), (2, 7, 7), (1, 100, 6)):
        log = tmp_path / "metrics.jsonl"
        log.unlink(missing_ok=True)
        training(tiny_model(), tiny_model(), tmp_path, epochs=epochs, max_steps=most).run(batches())
        assert json.loads(log.read_text().splitlines()[-1])["step"] == expected


def test_a_loss_that_explodes_stops_and_names_the_size(tmp_path: Path) -> None:
    student = tiny_model()
    with torch.no_grad():
        student.base_model.encoder.layer[0].intermediate.dense.weight[-1] = float("nan")
    message = r"the loss of w1\.00-d1\.00 is nan at step 1 \(epoch 1, training rows \d+, \d+, \d+, \d+\)"
    with pytest.raises(CompressorError, match=message):
        training(student, tiny_model(), tmp_path).run(batches())


def test_a_teacher_of_the_same_width_answers_for_each_width() -> None:
    teacher = SuperNetwork(tiny_model(seed=5))
    students = grid(teacher.dimensions, (1.0, 0.5), (1.0, 0.5), "reference")
    sizes = {name: grid(teacher.dimensions, (float(name[1:5]),), (1.0,))[f"{name[:5]}-d1.00"] for name in students}
    inputs = tiny_inputs()
    answers = Teacher(teacher, sizes, "reference").answer(inputs, students, EVERYTHING)
    narrow = teacher.run(sizes["w0.50-d0.50"], teacher.embed(inputs), inputs["attention_mask"], hidden_states=True)
    assert torch.equal(answers["w0.50-d0.50"].logits, narrow.logits)
    found = answers["w0.50-d0.50"].geometry
    assert found is not None
    assert torch.equal(found.states, torch.stack([narrow.hidden_states[i] for i in (0, 2, 4)], dim=1))


def test_regression_distils_and_learns(tmp_path: Path) -> None:
    student, teacher = tiny_model(num_labels=1), tiny_model(seed=5, num_labels=1)
    objective = ObjectiveSettings(logits=1, labels=1)
    trained = training(student, teacher, tmp_path, objective=objective, task=Regression())
    trained.run(batches(task=Regression()))
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["terms"]["logits"] > 0 and line["terms"]["labels"] > 0


def test_an_objective_without_what_it_needs() -> None:
    logits = torch.zeros(2, 3)
    for objective, message in (
        (ObjectiveSettings(logits=1), "a teacher"),
        (ObjectiveSettings(labels=1), "labels"),
        (ObjectiveSettings(logits=1, hidden_mse=1), "states"),
    ):
        teacher = None if message == "a teacher" else Outputs(logits)
        with pytest.raises(ValueError, match=message):
            terms(objective, TASK, Outputs(logits), teacher, None)


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    orders = [batches(200, seed=seed).order(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(place for batch in order for place in batch) == list(range(200)) for order in orders)
    assert all(first != second for place, first in enumerate(orders) for second in orders[:place])
    left = [batch["input_ids"].tolist() for batch in batches(200, seed=1).epoch(1, skip=30)]
    assert left == [batch["input_ids"].tolist() for batch in batches(200, seed=1).epoch(1)][30:]
