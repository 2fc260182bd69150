"""What is seen of a stage while it trains, which sizes a step takes, and which weights stay."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from compressor.context import Context
from compressor.engine import plan, run
from compressor.errors import CompressorError
from compressor.interruption import Interruption, Stopped
from compressor.processes import Processes
from compressor.progress import Progress
from compressor.recipe import check_recipe
from compressor.settings import ObjectiveSettings
from compressor.supernet.architectures import Dimensions
from compressor.supernet.subnetworks import grid
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Classification
from compressor.training import Sandwich, predict, whole_model
from compressor.training.gradients import Gradients
from compressor.training.step import GradientStep
from compressor.training.watch import Place, Watch
from tests.conftest import tiny_inputs, tiny_model, tiny_recipe, write_data


def recipe(folder: Path, *kinds: str, **changes: Any) -> dict[str, Any]:
    write_data(folder)
    value = tiny_recipe(folder)
    value["stages"] = [stage for stage in value["stages"] if stage["type"] in kinds]
    return value | changes


def metrics(folder: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "stages" / stage / "metrics.jsonl").read_text().splitlines()]


# --- sandwich --------------------------------------------------------------------------------------------------------

SIZES = grid(Dimensions(6, 12, 384, 1536), (1.0, 0.75, 0.5, 0.25), (1.0, 0.75, 0.5))
COSTS = {name: sum(size.heads) for name, size in SIZES.items()}


@given(seed=st.integers(0, 2**31), drawn=st.integers(0, 12), step=st.integers(1, 10**6))
def test_a_sandwich_has_the_largest_and_the_smallest(seed: int, drawn: int, step: int) -> None:
    sandwich = Sandwich(SIZES, COSTS, drawn, seed)
    found = sandwich(step)
    assert list(found) == [name for name in SIZES if name in found]
    assert {"w1.00-d1.00", "w0.25-d0.50"} <= found.keys() and len(found) == min(2 + drawn, 12)
    assert sandwich(step) == found


def test_a_sandwich_draws_every_size_as_often() -> None:
    sandwich = Sandwich(SIZES, COSTS, 2, 0)
    counts = dict.fromkeys(SIZES, 0)
    for step in range(2000):
        for name in sandwich(step):
            counts[name] += 1
    assert counts.pop("w1.00-d1.00") == counts.pop("w0.25-d0.50") == 2000
    # 400 each on average; five standard deviations are 90.
    assert all(abs(count - 400) < 90 for count in counts.values())


def test_a_sandwich_trains_and_reports_the_sizes_that_it_took(tmp_path: Path, quiet: Progress) -> None:
    value = recipe(tmp_path, "finetune", "reorder", "width", "depth")
    value["stages"][3] |= {"subnetworks": "sandwich", "drawn": 0}
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    assert set(metrics(tmp_path, "04-depth")[0]["sizes"]) == {"w1.00-d1.00", "w0.50-d0.50"}
    assert set(metrics(tmp_path, "03-width")[0]["sizes"]) == {"w1.00-d1.00", "w0.50-d1.00"}


# --- monitor ---------------------------------------------------------------------------------------------------------


def test_the_best_weights_stay_chosen_on_rows_that_nothing_trains_on(tmp_path: Path, quiet: Progress) -> None:
    """A learning rate that ruins what was learnt: the last weights are not the best ones."""
    value = recipe(tmp_path, "finetune")
    value["data"] |= {"selection": 0.25}
    value["stages"][0] |= {"epochs": 12, "learning_rate": 3e-2, "monitor": {"times": 12}}
    loaded = check_recipe(value, "r")
    run(loaded, tmp_path / "run", quiet)
    looks = [line for line in metrics(tmp_path, "01-finetune") if "monitor" in line]
    means = [look["monitor"]["mean"] for look in looks]
    assert len(means) == 12 and [look["step"] for look in looks] == [3 * (index + 1) for index in range(12)]
    best = means.index(max(means))
    assert max(means) > means[-1] and looks[best]["monitor"]["best"]
    assert [look["monitor"]["best"] for look in looks] == [mean > max([-1, *means[:i]]) for i, mean in enumerate(means)]
    context = Context(loaded, tmp_path / "run", quiet, Processes())
    data, model = context.data, context.load(tmp_path / "run" / "stages" / "01-finetune").model
    assert data.selection is not None and len(data.selection) == 30 and len(data.train) == 90
    assert not set(data.selection["row"]) & set(data.train["row"])
    found = data.task.score(predict(whole_model(model), data.batches(data.selection, 32)), data.labels(data.selection))
    assert found == means[best]
    record = json.loads((tmp_path / "run" / "stages" / "01-finetune" / "stage.json").read_text())
    assert record["result"].endswith(f"the weights of step {looks[best]['step']} kept")


def test_keep_last_looks_and_changes_nothing(tmp_path: Path, quiet: Progress) -> None:
    value = recipe(tmp_path, "finetune")
    value["data"] |= {"selection": 0.25}
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    value["stages"][0]["monitor"] = {"times": 3, "keep": "last"}
    run(check_recipe(value, "r"), tmp_path / "other", quiet)
    one, two = (load_file(tmp_path / run / "stages" / "01-finetune" / "model.safetensors") for run in ("run", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_monitor_without_labels_asks_the_teacher(tmp_path: Path, quiet: Progress) -> None:
    value = recipe(tmp_path, "finetune")
    run(check_recipe(value, "r"), tmp_path / "teacher", quiet)
    value = recipe(tmp_path, "width", model=str(tmp_path / "teacher" / "stages" / "01-finetune"))
    value["data"] |= {"selection": 0.25, "label": None}
    value["stages"][0]["monitor"] = {"times": 1, "sizes": ["w1.00-d1.00"]}
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    (look,) = [line for line in metrics(tmp_path, "01-width") if "monitor" in line]
    assert set(look["monitor"]["sizes"]) == {"w1.00-d1.00"} and look["monitor"]["mean"] > 0.5


def test_a_monitor_needs_rows_and_known_sizes(tmp_path: Path, quiet: Progress) -> None:
    value = recipe(tmp_path, "finetune")
    value["stages"][0]["monitor"] = {"sizes": ["techer"]}
    with pytest.raises(CompressorError, match=r"stages\[0\] \(finetune\)\.monitor: .* data\.selection=0\.1 holds"):
        check_recipe(value, "r")
    value["data"]["selection"] = 0.25
    with pytest.raises(CompressorError, match=r"monitor\.sizes: 'techer' is not trained; did you mean 'teacher'"):
        run(check_recipe(value, "r"), tmp_path / "run", quiet)
    value["stages"][0]["monitor"] = None
    value["data"]["selection"] = 0.999
    with pytest.raises(CompressorError, match=r"data\.selection: 0\.999 of 120 training rows leaves none to train on"):
        run(check_recipe(value, "r"), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


# --- metrics and trackers ------------------------------------------------------------------------------------------


def test_tensorboard_gets_the_lines_of_the_metrics(tmp_path: Path, quiet: Progress) -> None:
    value = recipe(tmp_path, "finetune", tracking="tensorboard")
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    events = EventAccumulator(str(tmp_path / "run" / "tracking" / "01-finetune"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("sizes/teacher")}
    lines = metrics(tmp_path, "01-finetune")
    assert logged == pytest.approx({line["step"]: line["sizes"]["teacher"] for line in lines})
    assert all(line["examples_per_second"] > 0 for line in lines)


def test_how_a_run_is_watched_is_no_part_of_its_result(tmp_path: Path) -> None:
    value = recipe(tmp_path, "finetune")
    other = value | {"tracking": "tensorboard", "checkpoints": {"minutes": 1}}
    one, two = (plan(check_recipe(found, "r"), tmp_path / "run")[0].fingerprint for found in (value, other))
    assert one == two


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_written(tmp_path: Path, quiet: Progress) -> None:
    value = recipe(tmp_path, "finetune", tracking="wandb")
    with pytest.raises(CompressorError, match="tracking: wandb is not installed; `pip install wandb`"):
        run(check_recipe(value, "r"), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


# --- watch -----------------------------------------------------------------------------------------------------------


def noted(watch: Watch, step: int, losses: list[float], norm: float = 1.0) -> None:
    watch.note(Place(step, 1, range(1, 20)), torch.tensor(losses), torch.tensor(norm))


@pytest.mark.parametrize(
    ("losses", "norm", "message"),
    [
        (
            [0.1, math.inf],
            1.0,
            r"the loss of b is inf at step 3 \(epoch 1, training rows 1, 2, 3, 4, 5, 6, 7, 8, ...\)",
        ),
        ([4001.0, 0.1], 1.0, "the loss of a is 4001 at step 3 .*; it began at 4"),
        ([0.1, 0.1], math.nan, "the gradient's norm is nan at step 3 "),
    ],
)
def test_a_watch_names_the_first_step_that_went_wrong(losses: list[float], norm: float, message: str) -> None:
    """Looked at late, as on a GPU, where every look would make the device wait."""
    watch = Watch(("a", "b"))
    noted(watch, 1, [6.0, 2.0])
    noted(watch, 2, [4000.0, 0.0])
    noted(watch, 3, losses, norm)
    noted(watch, 4, [math.nan, math.nan])
    with pytest.raises(CompressorError, match=message):
        watch.check()


def test_small_losses_that_grow_are_no_explosion() -> None:
    watch = Watch(("a",))
    for step, loss in enumerate((1e-8, 0.5, 1e-7, 900.0), start=1):
        noted(watch, step, [loss])
    watch.check()


# --- interruption ----------------------------------------------------------------------------------------------------


def test_the_first_signal_is_deferred_and_the_second_stops() -> None:
    interruption = Interruption()
    with interruption.installed():
        with pytest.raises(Stopped, match="goes on from what is saved") as caught, interruption.deferred():
            signal.raise_signal(signal.SIGTERM)
            assert interruption.requested == signal.SIGTERM
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second signal did not stop")
        assert caught.value.code == 130


def test_a_signal_that_the_loop_did_not_see_stops_behind_it() -> None:
    interruption, ended = Interruption(), False
    with interruption.installed(), pytest.raises(Stopped) as caught, interruption.deferred():
        signal.raise_signal(signal.SIGTERM)
        ended = True
    assert ended and caught.value.code == 143


# --- precision and memory --------------------------------------------------------------------------------------------


def test_bfloat16_keeps_gradients_and_losses_in_float32_near_those_of_float32() -> None:
    batch = {**tiny_inputs(), "labels": torch.tensor([0, 2, 1])}
    found = {}
    for half in (False, True):
        supernet = SuperNetwork(tiny_model())
        step = GradientStep(supernet, ObjectiveSettings(labels=1.0), Classification(("a", "b", "c")), half=half)
        losses = step(batch, {"whole": supernet.whole})["whole"]["labels"]
        assert losses.dtype == torch.float32
        found[half] = torch.cat([parameter.grad.flatten() for parameter in supernet.model.parameters()])
    assert not torch.equal(found[True], found[False])
    assert torch.cosine_similarity(found[True], found[False], dim=0) > 0.99


def test_gradients_lie_in_one_piece_and_are_zeroed_and_clipped_at_once() -> None:
    layer = torch.nn.Linear(3, 5)
    gradients = Gradients(list(layer.parameters()), losses=2)
    layer(torch.ones(1, 3)).sum().backward()
    gradients.losses.copy_(torch.tensor([1.0, 2.0]))
    assert layer.weight.grad is not None and layer.bias.grad is not None
    assert layer.weight.grad.untyped_storage().data_ptr() == layer.bias.grad.untyped_storage().data_ptr()
    assert gradients.clip(0.5).item() == pytest.approx(math.sqrt(20))
    norm = torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).norm().item()
    assert norm == pytest.approx(0.5, rel=1e-4) and gradients.losses.tolist() == [1, 2]
    gradients.zero()
    assert not layer.weight.grad.any() and not gradients.losses.any()
