"""Runs: what is skipped, what is run again, what is refused, and that nothing half-written stays."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import BertConfig, BertForSequenceClassification, GPT2Config

from compressor.engine import plan, run
from compressor.errors import CompressorError
from compressor.export import Family
from compressor.export.manifest import read_manifest
from compressor.models import quiet as quiet_transformers
from compressor.progress import Progress
from compressor.recipe import check_recipe, load_recipe
from tests.conftest import tiny_recipe, write_data

Finished = tuple[Path, Path]
STAGES = ["finetune", "reorder", "width", "depth", "finetune_family", "export", "evaluate", "benchmark", "report"]


def names(steps: Any, done: bool) -> list[str]:
    return [step.stage.type for step in steps if step.done == done]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_finished_run_has_everything(finished_run: Finished) -> None:
    folder, output = finished_run
    assert [path.name for path in sorted((output / "stages").iterdir())] == [
        f"{place:02d}-{name}" for place, name in enumerate(STAGES, start=1)
    ]
    record = json.loads((output / "run.json").read_text())
    assert [stage["name"] for stage in record["stages"] if stage["done"]] == [
        f"{place:02d}-{name}" for place, name in enumerate(STAGES, start=1)
    ]
    assert record["versions"]["torch"] and record["machine"]["processor"]
    assert load_recipe(str(output / "recipe.yaml")) == load_recipe(str(folder / "recipe.yaml"))
    assert [name for name in listing(output) if Path(name).name.startswith(".")] == [".lock"]


def test_a_finished_run_is_not_run_again(run_copy: Finished, quiet: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, output = run_copy
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    monkeypatch.setattr("compressor.engine._run_step", None)
    run(load_recipe(str(recipe)), output, quiet)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("stages.finetune.epochs=2", "finetune"),
        ("stages.width.epochs=2", "width"),
        ("stages.depth.teacher_width=same", "depth"),
        ("stages.evaluate.batch_size=8", "evaluate"),
        ("objective={logits: 1, word_pair: 2}", "width"),
        ("family.depth_rule=reference", "width"),
        ("seed=8", "finetune"),
    ],
)
def test_a_changed_stage_and_all_after_it_are_run_again(finished_run: Finished, override: str, first: str) -> None:
    folder, output = finished_run
    steps = plan(load_recipe(str(folder / "recipe.yaml"), [override]), output)
    assert names(steps, done=False) == STAGES[STAGES.index(first) :]


def test_changed_validation_data_is_evaluated_again_and_changed_training_data_trained(tmp_path: Path) -> None:
    write_data(tmp_path)
    recipe = check_recipe(tiny_recipe(tmp_path), "r")
    first = [step.fingerprint for step in plan(recipe, tmp_path / "run")]
    with (tmp_path / "dev.tsv").open("a") as file:
        file.write("the plot is good\tpositive\n")
    second = [step.fingerprint for step in plan(recipe, tmp_path / "run")]
    assert [a == b for a, b in zip(first, second, strict=True)] == [True] * 6 + [False] * 3
    with (tmp_path / "train.tsv").open("a") as file:
        file.write("the plot is good\tpositive\n")
    third = [step.fingerprint for step in plan(recipe, tmp_path / "run")]
    assert not set(third) & set(second)


def test_a_changed_benchmark_runs_alone(run_copy: Finished, quiet: Progress) -> None:
    recipe, output = run_copy
    export = (output / "stages" / "06-export" / "stage.json").read_text()
    run(load_recipe(str(recipe), ["stages.benchmark.length=8"]), output, quiet)
    family = read_manifest(output / "family")
    assert family.benchmark["length"] == 8 and family.evaluation["rows"] == 60
    assert (output / "stages" / "06-export" / "stage.json").read_text() == export


def test_a_lost_family_is_exported_again(run_copy: Finished) -> None:
    recipe, output = run_copy
    shutil.rmtree(output / "family")
    assert names(plan(load_recipe(str(recipe)), output), done=False) == STAGES[5:]


def test_a_lost_artifact_is_made_again_with_all_after_it(run_copy: Finished) -> None:
    recipe, output = run_copy
    shutil.rmtree(output / "stages" / "03-width")
    assert names(plan(load_recipe(str(recipe)), output), done=False) == STAGES[2:]


def test_the_same_seed_gives_the_same_weights(run_copy: Finished, tmp_path: Path, quiet: Progress) -> None:
    recipe, output = run_copy
    weights = output / "family" / "model.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(output / "stages" / "03-width")
    run(load_recipe(str(recipe)), output, quiet)
    assert weights.read_bytes() == before


def test_a_failed_stage_leaves_the_finished_ones_and_no_trace(run_copy: Finished, quiet: Progress) -> None:
    recipe, output = run_copy
    before = listing(output)
    shipped = (output / "family" / "family.json").read_text()
    with pytest.raises(CompressorError, match=r"w1\.00-d1\.00\.onnx: logits differ .* 1e-30 is allowed"):
        run(load_recipe(str(recipe), ["stages.export.tolerance=1e-30"]), output, quiet)
    assert listing(output) == before
    assert (output / "family" / "family.json").read_text() == shipped
    # The next run knows that what follows the failed stage does not belong to the changed recipe.
    steps = plan(load_recipe(str(recipe), ["stages.export.tolerance=1e-30"]), output)
    assert names(steps, done=True) == STAGES[:5]


def test_int8_that_disagrees_is_not_shipped(
    run_copy: Finished, quiet: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, output = run_copy
    monkeypatch.setattr("compressor.tasks.Classification.agreement", lambda *_: 0.4)
    with pytest.raises(CompressorError, match=r"_int8\.onnx agrees with PyTorch on 0\.400, 0\.500 is asked for"):
        run(load_recipe(str(recipe), ["stages.export.examples=16"]), output, quiet)


def test_another_recipe_may_not_use_the_folder(finished_run: Finished, quiet: Progress) -> None:
    folder, output = finished_run
    for override, key in (
        ("model.layers=3", "model"),
        ("task.metric=f1", "task"),
        ("data.max_length=16", "data"),
    ):
        with pytest.raises(CompressorError, match=f"holds a run of another recipe: its {key} is"):
            run(load_recipe(str(folder / "recipe.yaml"), [override]), output, quiet)


def test_a_folder_with_other_things_is_refused(recipe_folder: Path, quiet: Progress) -> None:
    recipe = load_recipe(str(recipe_folder / "recipe.yaml"))
    with pytest.raises(CompressorError, match="not empty and holds no run"):
        run(recipe, recipe_folder, quiet)
    with pytest.raises(CompressorError, match="is a file"):
        run(recipe, recipe_folder / "dev.tsv", quiet)


# --- mistakes that leave nothing behind ----------------------------------------------------------------------------


def model_folder(folder: Path, config: Any) -> str:
    folder.mkdir()
    config.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=nowhere.tsv"], "data.train: there is no file nowhere.tsv"),
        (["data.text=sentense"], "has no column 'sentense'; did you mean 'sentence'?"),
        (["data.label=lable"], "has no column 'lable'; did you mean 'label'?"),
        (["data.max_length=100"], "data.max_length: 100 is more than the 40 tokens"),
        (["family.depths=[1, 0.75]"], "w1.00-d1.00 and w1.00-d0.75 are the same sub-network"),
        (["model.hidden=30"], "4 attention heads do not divide the hidden size 30"),
        (["model=./nowhere"], "there is no folder ./nowhere"),
        (["model=no-such-model"], "no-such-model cannot be loaded"),
    ],
)
def test_mistakes_leave_nothing_behind(
    recipe_folder: Path, quiet: Progress, overrides: list[str], message: str
) -> None:
    before = listing(recipe_folder)
    with pytest.raises(CompressorError) as caught:
        run(load_recipe(str(recipe_folder / "recipe.yaml"), overrides), recipe_folder / "run", quiet)
    assert message in str(caught.value)
    assert listing(recipe_folder) == before


def test_models_that_cannot_be_cut(recipe_folder: Path, quiet: Progress) -> None:
    decoder = model_folder(recipe_folder / "gpt2", GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20))
    odd = model_folder(recipe_folder / "odd", BertConfig(hidden_size=30, num_attention_heads=4))
    (recipe_folder / "empty").mkdir()
    for model, message in (
        (decoder, "the architecture 'gpt2' is not supported; supported encoders: bert, roberta"),
        (odd, "4 attention heads do not divide the hidden size 30"),
        (str(recipe_folder / "empty"), "holds no config.json"),
    ):
        with pytest.raises(CompressorError) as caught:
            run(load_recipe(str(recipe_folder / "recipe.yaml"), [f"model={model}"]), recipe_folder / "run", quiet)
        assert message in str(caught.value)
        assert not (recipe_folder / "run").exists()


def test_labels_outside_the_known_ones(recipe_folder: Path, quiet: Progress) -> None:
    with (recipe_folder / "dev.tsv").open("a") as file:
        file.write("the plot is good\tneutral\n")
    with pytest.raises(CompressorError, match=r"dev\.tsv, row 61: the label 'neutral' is none of the known ones"):
        run(load_recipe(str(recipe_folder / "recipe.yaml")), recipe_folder / "run", quiet)
    assert not (recipe_folder / "run").exists()


# --- other ways through the engine ---------------------------------------------------------------------------------


def stages(value: dict[str, Any], *types: str) -> list[dict[str, Any]]:
    return [stage for stage in value["stages"] if stage["type"] in types]


def test_a_fine_tuned_model_and_texts_without_labels(finished_run: Finished, tmp_path: Path, quiet: Progress) -> None:
    """The teacher is left alone, its predictions rank and score: nothing reads a label."""
    write_data(tmp_path)
    for name in ("train.tsv", "dev.tsv"):
        lines = (tmp_path / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join(line.split("\t")[0] for line in lines) + "\n")
    value = tiny_recipe(tmp_path)
    value["model"] = str(finished_run[1] / "stages" / "01-finetune")
    value["data"]["label"] = None
    value["stages"] = stages(value, "reorder", "width", "depth", "export", "evaluate")
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    family = read_manifest(tmp_path / "run" / "family")
    assert family.evaluation["against"] == "the teacher's predictions"
    assert family.teacher["metrics"]["torch"] == 1.0
    assert all(0 < size.metrics["int8"] <= 1 for size in family.sizes)


def test_finetune_leaves_a_trained_head_alone(finished_run: Finished, tmp_path: Path, quiet: Progress) -> None:
    write_data(tmp_path)
    value = tiny_recipe(tmp_path)
    teacher = finished_run[1] / "stages" / "01-finetune"
    value["model"], value["stages"] = str(teacher), stages(value, "finetune")
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    made = tmp_path / "run" / "stages" / "01-finetune"
    assert json.loads((made / "stage.json").read_text())["result"] == "skipped: the model has a trained head"
    assert (made / "model.safetensors").read_bytes() == (teacher / "model.safetensors").read_bytes()


def test_without_a_trained_head_a_finetune_stage_is_asked_for(recipe_folder: Path, quiet: Progress) -> None:
    value = yaml.safe_load((recipe_folder / "recipe.yaml").read_text())
    value["stages"] = stages(value, "reorder")
    with pytest.raises(CompressorError, match="put a finetune stage first"):
        run(check_recipe(value, "r"), recipe_folder / "run", quiet)


def test_a_head_of_another_task_is_refused(finished_run: Finished, recipe_folder: Path, quiet: Progress) -> None:
    with quiet_transformers():
        model = BertForSequenceClassification(
            BertConfig(
                num_hidden_layers=2,
                hidden_size=8,
                num_attention_heads=2,
                intermediate_size=8,
                vocab_size=200,
                num_labels=2,
            )
        )
        model.save_pretrained(recipe_folder / "model")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(finished_run[1] / "stages" / "01-finetune" / file, recipe_folder / "model")
    overrides = [f"model={recipe_folder / 'model'}", "task={type: text-regression}", "data.label=score"]
    for name in ("train.tsv", "dev.tsv"):
        text = (recipe_folder / name).read_text().replace("negative", "0.1").replace("positive", "0.9")
        (recipe_folder / name).write_text(text.replace("\tlabel", "\tscore"))
    recipe = load_recipe(str(recipe_folder / "recipe.yaml"), overrides)
    with pytest.raises(CompressorError, match="has a head with 2 outputs, the task needs 1"):
        run(recipe, recipe_folder / "run", quiet)


def test_regression_on_pairs_goes_the_whole_way(tmp_path: Path, quiet: Progress) -> None:
    write_data(tmp_path)
    for name in ("train.tsv", "dev.tsv"):
        rows = [line.split("\t") for line in (tmp_path / name).read_text().splitlines()[1:]]
        lines = [f"{text}\t{text[::2]}\t{len(text) / 20:.2f}" for text, _ in rows]
        (tmp_path / name).write_text("\n".join(["one\ttwo\tscore", *lines]) + "\n")
    value = tiny_recipe(tmp_path)
    value["task"] = {"type": "text-regression", "metric": "pearson"}
    value["data"] |= {"text": "one", "text_pair": "two", "label": "score"}
    # Enough to tell short from long: int8 cannot be compared with a model that answers the mean to everything.
    stages(value, "finetune")[0] |= {"epochs": 30, "learning_rate": 3e-3}
    stages(value, "depth")[0] |= {"epochs": 10}
    run(check_recipe(value, "r"), tmp_path / "run", quiet)
    family = read_manifest(tmp_path / "run" / "family")
    assert family.evaluation["metric"] == "pearson" and family.evaluation["baseline"] is None
    assert all(size.metrics["fp32"] > 0.5 and size.parity["int8_agreement"] > 0.5 for size in family.sizes)
    opened = Family.load(tmp_path / "run" / "family").open("w1.00-d1.00")
    assert isinstance(opened.predict(("one text", "and another"))[0].score, float)
    with pytest.raises(CompressorError, match="text 1: this family was trained on pairs of texts; give two"):
        opened.predict("one text")
