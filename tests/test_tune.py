"""Recipe search: the space, the recipe of a trial, NNI's tuner and experiment where they were found to break."""

import csv
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from nni.algorithms.hpo.tpe_tuner import TpeTuner

from compressor.errors import CompressorError
from compressor.recipe import load_recipe
from compressor.search import experiment as experiments
from compressor.search.safe_tuner import SafeTpe
from compressor.search.tuning import (
    Plan,
    Trial,
    best_of,
    command_of,
    read_space,
    trial_recipe,
    write_csv,
)
from tests.conftest import tiny_recipe, write_data
from tests.test_family import command

SPACE = {"x": {"_type": "uniform", "_value": [0, 1]}}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    write_data(tmp_path)
    value = tiny_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(value))
    return Plan(str(tmp_path / "recipe.yaml"), ("seed=5",), str(tmp_path / "trials"), str(tmp_path))


# --- the space and the plan ----------------------------------------------------------------------------------------


def test_a_list_is_a_choice(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("a.b: [1, 2]\nc: {_type: loguniform, _value: [1.0e-5, 1.0e-3]}\n")
    assert read_space(tmp_path / "space.yaml") == {
        "a.b": {"_type": "choice", "_value": [1, 2]},
        "c": {"_type": "loguniform", "_value": [1e-5, 1e-3]},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "a: give a list of values, or _type and _value"),
        ("a: {_type: unifrom, _value: [0, 1]}", "a: _type 'unifrom' is none of choice, randint"),
        ("a: {_type: uniform, _value: [0]}", r"a: _value \[0\]; uniform needs a list of 2 numbers"),
        ("a: []", r"a: _value \[\]; choice needs a list of values"),
        ("{}", "names no key of the recipe"),
        ("[1]", "space.yaml"),
    ],
)
def test_a_space_that_is_none_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(CompressorError, match=message):
        read_space(tmp_path / "space.yaml")


def test_a_trial_trains_and_looks_at_held_out_rows_alone(plan: Plan) -> None:
    recipe = trial_recipe(plan, {"stages.width.learning_rate": 0.002, "stages.depth.epochs": 3})
    assert [stage.type for stage in recipe.stages] == ["finetune", "reorder", "width", "depth", "finetune_family"]
    assert recipe.seed == 5 and recipe.data.selection == 0.2
    stages = {stage.type: stage.model_dump() for stage in recipe.stages}
    assert stages["width"]["learning_rate"] == 0.002 and stages["depth"]["epochs"] == 3
    assert stages["finetune_family"]["monitor"]["keep"] == "last" and stages["width"]["monitor"] is None
    own = trial_recipe(replace(plan, overrides=("data.selection=0.4",)), {})
    assert own.data.selection == 0.4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages.wdith.epochs": 1}, "the recipe has no stage 'wdith'"),
        ({"stages.width.epochs": 0}, r"stages\[2\]"),
        ({"stages.width.epoch": 1}, "epoch"),
        ({"stages": [{"type": "finetune"}]}, "no stage trains a family"),
    ],
)
def test_values_that_do_not_fit_the_recipe_are_told(plan: Plan, values: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressorError, match=message):
        trial_recipe(plan, values)


def test_a_plan_is_read_as_it_was_written(plan: Plan, tmp_path: Path) -> None:
    for one in (plan, replace(plan, sizes=("b", "c"), best=True)):
        one.write(tmp_path / "plan.json")
        assert Plan.read(tmp_path / "plan.json") == one
    found = {"a": 0.9, "b": 0.5, "c": 0.7}
    assert plan.score(found) == pytest.approx(0.7)
    assert replace(plan, sizes=("b", "c")).score(found) == pytest.approx(0.6)
    assert replace(plan, sizes=("b", "c"), best=True).score(found) == 0.7


def test_the_best_is_a_command_that_gives_its_recipe(plan: Plan, tmp_path: Path) -> None:
    values = {"stages.width.learning_rate": 1e-05, "objective": {"logits": 1.0, "hidden_mse": 0.1}}
    trials = [
        Trial(0, "SUCCEEDED", 0.5, 1.0, {"seed": 1}),
        Trial(1, "SUCCEEDED", 0.7, 1.0, values),
        Trial(2, "EARLY_STOPPED", 0.9, 1.0, {}),
        Trial(3, "LOST", None, 1.0, {}),
    ]
    best = best_of(trials, tmp_path)
    assert best.number == 1
    words = shlex.split(command_of(plan, best))
    assert words[:3] == ["compressor", "run", plan.recipe]
    recipe = load_recipe(words[2], words[3:])
    assert recipe.stages[2].learning_rate == 1e-5 and recipe.objective.hidden_mse == 0.1  # type: ignore[union-attr]
    write_csv(trials, tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["value"] for row in rows] == ["0.5", "0.7", "0.9", ""] and rows[0]["seed"] == "1"


def test_what_failed_is_told(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "error.txt").write_text("out of luck\n")
    with pytest.raises(
        CompressorError, match=r"no trial ended with a value \(failed, lost\); .*error.txt: out of luck"
    ):
        best_of([Trial(0, "LOST", None, 1.0, {}), Trial(1, "FAILED", None, 1.0, {})], tmp_path)


# --- NNI's tuner and experiment ------------------------------------------------------------------------------------


def test_a_value_behind_the_end_of_its_trial_is_counted() -> None:
    """What NNI's server sends at times, and what stops its own tuner for ever."""
    for kind, breaks in ((TpeTuner, True), (SafeTpe, False)):
        tuner = kind(optimize_mode="maximize", seed=0)
        tuner.update_search_space(SPACE)
        parameters = tuner.generate_parameters(0)
        tuner.trial_end(0, True)
        if breaks:
            with pytest.raises(KeyError):
                tuner.receive_trial_result(0, parameters, 0.5)
        else:
            tuner.receive_trial_result(0, parameters, 0.5)
            assert [record.loss for record in tuner._history[("x",)]] == [-0.5]


def test_both_tuners_suggest_the_same_where_nothing_is_out_of_order() -> None:
    found = []
    for kind in (TpeTuner, SafeTpe):
        tuner = kind(optimize_mode="maximize", seed=3)
        tuner.update_search_space(SPACE)
        found.append([])
        for number in range(30):
            parameters = tuner.generate_parameters(number)
            tuner.receive_trial_result(number, parameters, parameters["x"])
            tuner.trial_end(number, True)
            found[-1].append(parameters["x"])
    assert found[0] == found[1]


class FakeExperiment:
    id = "fake"

    def __init__(self, *jobs: Any, status: str = "RUNNING") -> None:
        self._jobs, self._status = jobs, status

    def list_trial_jobs(self) -> Any:
        return self._jobs

    def get_status(self) -> str:
        return self._status


def job(number: int, status: str, value: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        sequenceId=number,
        status=status,
        hyperParameters=[SimpleNamespace(parameters={"x": number})],
        finalMetricData=[SimpleNamespace(data=value)] if value else None,
        startTime=1000,
        endTime=None if status == "RUNNING" else 3000,
    )


def test_a_stall_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "_STALL", 0.2)
    monkeypatch.setattr(experiments, "_POLL", 0.05)
    with pytest.raises(CompressorError, match=r"NNI has started no trial for 0.2 seconds after 1 of 3"):
        experiments._watched(FakeExperiment(job(0, "SUCCEEDED", '"0.5"')), 3, lambda: None)
    with pytest.raises(CompressorError, match="NNI reports an error after 0 trials"):
        experiments._watched(FakeExperiment(job(0, "RUNNING"), status="ERROR"), 3, lambda: None)


def test_a_trial_that_told_no_value_is_lost() -> None:
    told: list[int] = []
    jobs = (job(1, "SUCCEEDED"), job(0, "SUCCEEDED", '"0.25"'), job(2, "FAILED"))
    found = experiments._watched(FakeExperiment(*jobs), 3, lambda: told.append(1))
    assert [(trial.number, trial.status, trial.value) for trial in found] == [
        (0, "SUCCEEDED", 0.25),
        (1, "LOST", None),
        (2, "FAILED", None),
    ]
    assert len(told) == 3 and found[0].seconds == 2.0 and found[0].values == {"x": 0}


# --- the command ---------------------------------------------------------------------------------------------------


def space_and_output(folder: Path) -> tuple[str, ...]:
    (folder / "space.yaml").write_text("stages.width.learning_rate: {_type: loguniform, _value: [1.0e-4, 1.0e-2]}\n")
    return ("--space", str(folder / "space.yaml"), "--output", str(folder / "out"))


def test_a_recipe_is_tuned(plan: Plan, tmp_path: Path) -> None:
    short = (
        "stages.finetune.epochs=1",
        "stages.width.epochs=1",
        "stages.depth.max_steps=2",
    )
    value = yaml.safe_load(Path(plan.recipe).read_text())
    value["stages"] = [stage for stage in value["stages"] if stage["type"] in ("finetune", "reorder", "width", "depth")]
    Path(plan.recipe).write_text(yaml.safe_dump(value))
    # In a process of its own: NNI leaves a socket and a log file open.
    words = ["tune", plan.recipe, *space_and_output(tmp_path), *short, "--trials", "2", "--parallel", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "compressor", *words, "--objective", "w0.50-d0.50"],
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout
    assert done.returncode == 0, done.stderr
    assert "2 of 2 trials ended with a value" in output and f"compressor run {plan.recipe} stages.width" in output
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["SUCCEEDED"] * 2
    for row in rows:
        lines = (tmp_path / "out" / "trials" / row["trial"] / "stages" / "04-depth" / "metrics.jsonl").read_text()
        last = [yaml.safe_load(line) for line in lines.splitlines() if "monitor" in line][-1]
        assert float(row["value"]) == pytest.approx(last["monitor"]["sizes"]["w0.50-d0.50"])
    assert not (Path.home() / "nni-experiments").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objective", "w0.50-d0.5"), "is not mean, nor milliseconds (5ms), nor a size; did you mean 'w0.50-d0.50'?"),
        (("--objective", "0.000001ms"), "no size is as fast as 0.000001ms; the fastest takes"),
        (("--algorithm", "tbe"), "--algorithm: 'tbe' is none of tpe, evolution, random"),
        (("data.train=none.tsv",), "none.tsv"),
    ],
)
def test_mistakes_are_told_before_a_trial_starts(
    plan: Plan, tmp_path: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.search.tune.run_experiment", lambda *_, **__: pytest.fail("a trial was started"))
    code, output = command("tune", plan.recipe, *space_and_output(tmp_path), *words)
    assert code == 2 and message in output.replace("\n", " "), output
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    code, output = command("tune", plan.recipe, *space_and_output(tmp_path))
    assert code == 2 and "is not empty; give a new folder" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("machines: []", "needs manager_ip and a list of machines"),
        ("{manager_ip: a, machines: [{host: b}]}", r"machines\[0\] needs host and user, and may have"),
        ("{manager_ip: a, machines: [{host: b, user: c, pasword: d}]}", r"machines\[0\] needs host and user"),
    ],
)
def test_machines_that_are_none_are_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "machines.yaml").write_text(text)
    with pytest.raises(CompressorError, match=message):
        experiments.Machines.read(tmp_path / "machines.yaml")


def test_machines_become_nnis_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    text = f"{{manager_ip: 10.0.0.1, machines: [{{host: h, user: u, port: 23, ssh_key_file: {tmp_path / 'key'}}}]}}"
    (tmp_path / "machines.yaml").write_text(text)
    config = SimpleNamespace(training_service=SimpleNamespace())
    machines = experiments.Machines.read(tmp_path / "machines.yaml")
    machines.configure(config)
    (machine,) = config.training_service.machine_list
    assert (machine.host, machine.user, machine.port) == ("h", "u", 23) and config.nni_manager_ip == "10.0.0.1"
    (tmp_path / "key").unlink()
    with pytest.raises(CompressorError, match="h: there is no ssh_key_file"):
        machines.configure(config)
