"""Recipes: what is accepted, and what each mistake is told."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.errors import CompressorError
from compressor.recipe import Recipe, bundled, check_recipe, load_recipe, read_yaml
from tests.conftest import tiny_recipe


@pytest.fixture
def value(tmp_path: Path) -> dict[str, Any]:
    return tiny_recipe(tmp_path)


def mistake(value: dict[str, Any]) -> str:
    with pytest.raises(CompressorError) as caught:
        check_recipe(value, "r")
    return str(caught.value)


@pytest.mark.parametrize("name", bundled())
def test_bundled_recipes_are_valid_and_begin_with_their_command(name: str) -> None:
    recipe = load_recipe(name)
    assert bundled()[name].startswith(f"compressor run {name} ")
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


def test_overrides_are_typed_as_yaml_and_find_stages_by_type_or_place(tmp_path: Path) -> None:
    recipe = load_recipe(
        "quickstart",
        [
            "seed=7",
            "stages.width.learning_rate=1e-4",
            "stages.3.teacher_width=same",
            "objective={logits: 1, hidden_mse: 0.1}",
            "family.widths=[0.5, 1]",
            "model=folder",
        ],
    )
    assert recipe.seed == 7 and recipe.model == "folder"
    width, depth = recipe.stages[2], recipe.stages[3]
    assert width.learning_rate == 1e-4 and depth.teacher_width == "same"  # type: ignore[union-attr]
    assert recipe.objective.hidden_mse == 0.1 and recipe.objective.word_pair == 0
    assert recipe.family.widths == (1.0, 0.5)


def test_a_stage_takes_its_own_objective_or_the_recipes() -> None:
    recipe = load_recipe("quickstart", ["stages.depth.objective={logits: 2}"])
    assert recipe.objective_of(recipe.stages[2]) == recipe.objective
    assert recipe.objective_of(recipe.stages[3]).logits == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.wdith.epochs=1", "no stage 'wdith'; did you mean 'width'?"),
        ("stages.99.epochs=1", "no stage '99'"),
        ("seed", "key=value is needed"),
        ("seed=[1", "the value is no YAML"),
        ("seed.x=1", "has no keys"),
        ("data.trian=1", "data.trian: unknown key; did you mean 'train'?"),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    with pytest.raises(CompressorError) as caught:
        load_recipe("quickstart", [override])
    assert message in str(caught.value)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(CompressorError, match="did you mean 'quickstart'"):
        load_recipe("quikstart")
    with pytest.raises(CompressorError, match="cannot be read"):
        load_recipe("nowhere.yaml")


def test_misspelt_keys_unknown_stages_and_wrong_types_are_told_together(value: dict[str, Any]) -> None:
    value["sead"] = 1
    value["stages"][0]["epoks"] = 3
    value["stages"][2]["epochs"] = "three"
    value["stages"][3]["type"] = "dpeth"
    value["stages"][4]["learning_rate"] = -1
    value["task"]["metric"] = "acuracy"
    text = mistake(value)
    for expected in (
        "has 6 mistakes",
        "sead: unknown key; did you mean 'seed'? allowed: version, seed, model",
        "stages[0] (finetune).epoks: unknown key; did you mean 'epochs'? allowed: epochs, max_steps",
        "stages[2] (width).epochs: input should be a valid integer",
        "not 'three'",
        "stages[3].type: 'dpeth' is not known; did you mean 'depth'? allowed: finetune, distill, reorder",
        "stages[4] (finetune_family).learning_rate: input should be greater than 0, not -1",
        "task.metric: 'acuracy' is not allowed; did you mean 'accuracy'? allowed: accuracy, f1, matthews",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        (("model",), None, "model: input should be a valid dictionary"),
        (("model", "layres"), 3, "model.layres: unknown key; did you mean 'layers'?"),
        (("family", "widths"), [1.0, 0], "family.widths[1]: input should be greater than 0, not 0"),
        (("family", "widths"), [1.5], "family.widths[0]: input should be less than or equal to 1, not 1.5"),
        (("family", "widths"), [], "family.widths: tuple should have at least 1 item"),
        (("family", "depths"), [0.5, 0.5], "names a multiplier twice"),
        (("task", "type"), "text-clasification", "task.type: 'text-clasification' is not known; did you mean"),
        (("stages",), [], "stages: tuple should have at least 1 item"),
        (("stages", 0), {"epochs": 1}, "stages[0]: a `type` is missing"),
        (("data", "columns"), "x", "data.columns: unknown key; allowed: text, text_pair"),
        (("version",), 2, "version: 2 is not allowed"),
        (("objective",), {"word_pair": 1}, "objective: word_pair without logits or labels"),
        (("objective",), {"temperature": 2}, "objective: every weight is 0"),
        (("objective",), {"logits": 1, "window": 4}, "window is 4; an odd number"),
        (("objective",), {"logits": float("nan")}, "objective.logits: input should be a finite number"),
        (("stages", 2, "objective"), {"layer_angle": 1}, "stages[2] (width).objective: layer_angle without logits"),
    ],
)
def test_each_mistake(value: dict[str, Any], path: tuple[Any, ...], new: Any, message: str) -> None:
    here: Any = value
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = new
    assert message in mistake(value)


def test_missing_sections(value: dict[str, Any]) -> None:
    del value["task"], value["data"]["train"]
    text = mistake(value)
    assert "task: missing" in text and "data.train: missing" in text


def stage_types(value: dict[str, Any], *types: str) -> dict[str, Any]:
    by_type = {stage["type"]: stage for stage in value["stages"]}
    value["stages"] = [by_type[name] for name in types]
    return value


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (("finetune", "depth"), "stages[1] (depth): depth needs a width stage before it"),
        (("width", "reorder"), "stages[1] (reorder): reorder must stand before width, which is at 0"),
        (("evaluate",), "stages[0] (evaluate): evaluate needs an export stage before it"),
        (("width", "width"), "stages[1] (width): stands twice, at 0 already"),
        (("finetune", "width", "export"), "family.depths: 0.5 is asked for, and no depth stage trains it"),
        (("finetune", "export"), "family.widths: 0.5 is asked for, and no width stage trains it"),
    ],
)
def test_stages_must_fit_together(value: dict[str, Any], types: tuple[str, ...], message: str) -> None:
    assert message in mistake(stage_types(value, *types))


def test_without_labels_nothing_may_learn_from_them(value: dict[str, Any]) -> None:
    value["data"]["label"] = None
    value["objective"] = {"logits": 1, "labels": 1}
    text = mistake(value)
    for expected in ("(finetune): finetune learns from labels", "(width): the objective weighs labels"):
        assert expected in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "the key 'a' stands twice"),
        ("- a", "a mapping is needed"),
        ("a: [1", "line 1"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("", "a mapping is needed"),
    ],
)
def test_what_is_no_recipe_at_all(text: str, message: str) -> None:
    with pytest.raises(CompressorError) as caught:
        read_yaml(text, "r")
    assert message in str(caught.value)
