"""The command line: exit codes, one clear message, and what each command prints."""

import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from compressor.cli import app
from compressor.stages import STAGES

Finished = tuple[Path, Path]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_run_shows_the_table_and_does_nothing_twice(run_copy: Finished) -> None:
    recipe, output = run_copy
    result = call("run", str(recipe), "--output", str(output))
    assert result.exit_code == 0
    assert "09-report: done before" in result.stdout
    for text in ("teacher", "w1.00-d1.00", "w0.50-d0.50", "int8 ms", "most frequent answer scores"):
        assert text in result.stdout


def test_plan_shows_what_is_done_and_the_sizes_and_writes_nothing(recipe_folder: Path, run_copy: Finished) -> None:
    result = call("plan", str(recipe_folder / "recipe.yaml"), "--output", str(recipe_folder / "new"))
    assert result.exit_code == 0 and not (recipe_folder / "new").exists()
    assert result.stdout.count("to run") == 9 and "w0.50-d0.50" in result.stdout and "MACs" in result.stdout
    recipe, output = run_copy
    changed = call("plan", str(recipe), "stages.depth.epochs=2", "--output", str(output))
    assert changed.stdout.count("done (") == 3 and changed.stdout.count("to run") == 6


def test_planned_parameters_are_those_of_the_exported_sizes(finished_run: Finished) -> None:
    from compressor.export.manifest import read_manifest

    folder, output = finished_run
    result = call("plan", str(folder / "recipe.yaml"), "--output", str(output))
    for size in read_manifest(output / "family").sizes:
        line = next(line for line in result.stdout.splitlines() if size.name in line)
        assert f"{size.parameters / 1e6:.2f} M" in line and f"{size.macs / 1e6:,.1f} M" in line


def test_validate_prints_the_resolved_recipe(tmp_path: Path) -> None:
    result = call("validate", "quickstart", "seed=3")
    assert result.exit_code == 0 and "seed: 3" in result.stdout and "depth_rule: paper" in result.stdout
    (tmp_path / "again.yaml").write_text(result.stdout)
    assert call("validate", str(tmp_path / "again.yaml")).stdout == result.stdout


def test_recipes_and_stages_are_listed() -> None:
    assert "quickstart" in call("recipes").stdout and "compressor run sst2" in call("recipes").stdout
    listed = call("stages").stdout
    for name, stage in STAGES.items():
        assert f"{name}: " in listed
        assert all(f"    {key} = " in listed for key in stage.model_fields if key != "type")


def test_a_mistake_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    result = call("run", "quickstart", "stages.width.epoks=1", "--output", str(tmp_path / "run"))
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: recipe quickstart: stages[2] (width).epoks: unknown key; did you mean")
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()


def test_debug_shows_the_traceback() -> None:
    result = call("validate", "quikstart", "--debug")
    assert result.exception is not None and "no recipe 'quikstart'" in str(result.exception)


def test_an_error_of_ours_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.cli.load_recipe", lambda *_: 1 / 0)
    result = call("validate", "quickstart")
    assert result.exit_code == 1 and "internal error: ZeroDivisionError" in result.stderr


def test_a_folder_that_cannot_be_written_is_told(recipe_folder: Path) -> None:
    (recipe_folder / "file").write_text("")
    result = call("run", str(recipe_folder / "recipe.yaml"), "--output", str(recipe_folder / "file" / "run"))
    assert result.exit_code == 2 and "Traceback" not in result.stderr and "file" in result.stderr


def test_ctrl_c_says_how_to_go_on(recipe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        monkeypatch.setattr("compressor.engine.run", lambda *_, number=number: signal.raise_signal(number))
        before = signal.getsignal(number)
        result = call("run", str(recipe_folder / "recipe.yaml"), "--output", str(recipe_folder / "run"))
        assert result.exit_code == code and "the same command goes on" in result.stderr
        assert signal.getsignal(number) == before
