"""What single stages do with the artifacts of those before them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compressor.context import Context
from compressor.engine import plan
from compressor.processes import Processes
from compressor.progress import Progress
from compressor.recipe import load_recipe
from compressor.supernet.subnetworks import Subnetwork

Finished = tuple[Path, Path]


@pytest.fixture
def context(finished_run: Finished, tmp_path: Path, quiet: Progress) -> Context:
    """The finished run as a stage sees it, all checkpoints there."""
    return context_of(finished_run, tmp_path, quiet)


def context_of(finished: Finished, folder: Path, progress: Progress, *overrides: str) -> Context:
    source, output = finished
    recipe = load_recipe(str(source / "recipe.yaml"), overrides)
    steps = plan(load_recipe(str(source / "recipe.yaml")), output)
    checkpoints = {step.stage.type: step.folder for step in steps if step.stage.checkpoint}
    (folder / "partial").mkdir()
    return Context(
        recipe, output, progress, Processes(), folder=folder, partial=folder / "partial", checkpoints=checkpoints
    )


def stage_of(context: Context, kind: str) -> Any:
    return next(stage for stage in context.recipe.stages if stage.type == kind)


def remember_trainings(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    """Trainings are not run but collected."""

    def run(self: Any, *_: object) -> None:
        self.records.file.touch()
        seen.append(self)

    monkeypatch.setattr("compressor.training.Training.run", run)


def test_reorder_permutes_the_teacher_and_keeps_its_function(context: Context) -> None:
    teacher, reordered = context.teacher().model.eval(), context.load(context.checkpoints["reorder"]).model.eval()
    ids = torch.randint(5, 60, (4, 9))
    torch.testing.assert_close(reordered(input_ids=ids).logits, teacher(input_ids=ids).logits, rtol=0, atol=1e-5)
    name = "bert.encoder.layer.0.intermediate.dense.bias"
    before, after = teacher.state_dict()[name], reordered.state_dict()[name]
    assert not torch.equal(before, after)
    scores = load_file(context.checkpoints["reorder"] / "importance.safetensors")
    assert torch.equal(after, before[scores["neurons"][0].argsort(descending=True, stable=True)])
    assert scores["heads"].shape == (2, 4)


@pytest.mark.parametrize("teacher_width", ["full", "same"])
def test_depth_is_taught_by_the_width_adaptive_network(
    finished_run: Finished, tmp_path: Path, quiet: Progress, monkeypatch: pytest.MonkeyPatch, teacher_width: str
) -> None:
    seen: list[Any] = []
    remember_trainings(monkeypatch, seen)
    context = context_of(finished_run, tmp_path, quiet, f"stages.depth.teacher_width={teacher_width}")
    stage_of(context, "depth").run(context)
    teacher = seen[0].step.teacher
    expected = load_file(context.checkpoints["width"] / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in teacher.supernet.model.state_dict().items())
    assert list(seen[0].sizes) == ["w1.00-d1.00", "w0.50-d1.00", "w1.00-d0.50", "w0.50-d0.50"]
    half = Subnetwork((0, 1), (2, 2), (32, 32)) if teacher_width == "same" else teacher.supernet.whole
    assert teacher.sizes["w0.50-d0.50"] == half and teacher.sizes["w1.00-d0.50"] == teacher.supernet.whole


def test_width_is_taught_by_the_teacher_at_full_depth(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    remember_trainings(monkeypatch, seen)
    context.checkpoints = {kind: context.checkpoints[kind] for kind in ("finetune", "reorder")}
    stage_of(context, "width").run(context)
    taught_by = load_file(context.checkpoints["finetune"] / "model.safetensors")
    student = load_file(context.checkpoints["reorder"] / "model.safetensors")
    for model, expected in ((seen[0].step.teacher.supernet.model, taught_by), (seen[0].step.supernet.model, student)):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert list(seen[0].sizes) == ["w1.00-d1.00", "w0.50-d1.00"]


def test_the_final_fine_tuning_has_no_teacher(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    remember_trainings(monkeypatch, seen)
    stage_of(context, "finetune_family").run(context)
    assert seen[0].step.teacher is None and seen[0].step.objective.labels == 1 and len(seen[0].sizes) == 4
