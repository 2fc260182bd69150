"""The command line: `compressor run | plan | validate | recipes | stages`, and what `family_cli` adds."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from compressor import family_cli
from compressor.errors import CompressorError
from compressor.recipe import Recipe, bundled, load_recipe
from compressor.stages import STAGES
from compressor.terminal import Debug, be_quiet, errors, is_main, wide_console
from compressor.version import __version__

app = typer.Typer(
    help="Turn a fine-tuned BERT into a family of deployable ONNX sizes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(family_cli.app)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A bundled recipe (see `recipes`) or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as stages.width.epochs=1.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")]


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Output = Path("runs/run"),
    debug: Debug = False,
) -> None:
    """Run a recipe; stages that are done already are not run again."""
    with errors(debug):
        _run(load_recipe(recipe, overrides or ()), output)


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Output = Path("runs/run"),
    debug: Debug = False,
) -> None:
    """Show the stages, what is done already, and the sizes; nothing is executed."""
    with errors(debug):
        from compressor.engine import plan as plan_recipe
        from compressor.progress import format_seconds

        be_quiet()
        console = wide_console()
        loaded = load_recipe(recipe, overrides or ())
        stages = Table("stage", "state", "settings")
        for step in plan_recipe(loaded, output):
            state = f"done ({format_seconds(step.seconds or 0)})" if step.done else "to run"
            state += f" from step {step.saved_step + 1}" if step.saved_step else ""
            settings = step.stage.model_dump(mode="json", exclude={"type"}, exclude_none=True)
            stages.add_row(step.name, state, ", ".join(f"{key}={value}" for key, value in settings.items()))
        console.print(stages)
        console.print(_planned_sizes(loaded))


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run whose family is trained.")],
    rows: Annotated[
        str | None, typer.Option(help="File of rows to choose by; else what data.selection held out.")
    ] = None,
    evaluations: Annotated[int | None, typer.Option(help="Sub-networks to try.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long.")] = None,
    algorithm: Annotated[str | None, typer.Option(help="tpe, evolution or random.")] = None,
    precision: Annotated[str | None, typer.Option(help="Whose latency counts: fp32 or int8.")] = None,
    debug: Debug = False,
) -> None:
    """Search a trained super-network for better sizes than the grid's, and export them beside it."""
    with errors(debug):
        from compressor.recipe import check_recipe, read_yaml, with_stage

        file = folder / "recipe.yaml"
        if not file.is_file():
            raise CompressorError(f"{folder}: there is no run, for it holds no recipe.yaml")
        given = {"rows": rows, "evaluations": evaluations, "minutes": minutes, "algorithm": algorithm}
        stage = {"type": "search", "precision": precision, **given}
        value = read_yaml(file.read_text(encoding="utf-8"), str(file))
        changed = with_stage(value, {key: value for key, value in stage.items() if value is not None}, before="export")
        _run(check_recipe(changed, str(file)), folder)


@app.command()
def tune(
    recipe: RecipeName,
    overrides: Overrides = None,
    space: Annotated[Path, typer.Option(help="YAML: keys of the recipe and the values to try.")] = Path("space.yaml"),
    trials: Annotated[int, typer.Option(min=1, help="How many values to try.")] = 20,
    parallel: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 1,
    objective: Annotated[str, typer.Option(help="mean of the family, the name of a size, or a latency: 5ms.")] = "mean",
    algorithm: Annotated[str, typer.Option(help="tpe, evolution or random.")] = "tpe",
    machines: Annotated[Path | None, typer.Option(help="YAML: other machines that trials run on, by ssh.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the trials, a new one.")] = Path(
        "runs/tune"
    ),
    debug: Debug = False,
) -> None:
    """Try values of a recipe's keys on held-out training data, and print the best as a command."""
    with errors(debug):
        be_quiet()
        from compressor.progress import Progress
        from compressor.search.tune import tune as tune_recipe

        console = Console()
        tune_recipe(
            recipe,
            overrides or (),
            space,
            output,
            Progress(console),
            objective=objective,
            algorithm=algorithm,
            trials=trials,
            parallel=parallel,
            machines=machines,
        )


@app.command()
def validate(recipe: RecipeName, overrides: Overrides = None, debug: Debug = False) -> None:
    """Check a recipe and print it with all its defaults."""
    with errors(debug):
        print(load_recipe(recipe, overrides or ()).to_yaml(), end="")


@app.command()
def recipes() -> None:
    """List the recipes that come with the package."""
    for name, comment in bundled().items():
        command, _, purpose = comment.partition("\n")
        print(f"{name:18s} {purpose}\n{'':18s} {command}")


@app.command()
def stages() -> None:
    """List every stage with its parameters and defaults."""
    for name, stage in STAGES.items():
        print(f"{name}: {(stage.__doc__ or '').strip().splitlines()[0]}")
        for key, settings in stage.model_fields.items():
            if key != "type":
                print(f"    {key} = {_plain(settings.default)}")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Entry point of the console script."""
    app()


def _run(recipe: Recipe, output: Path) -> None:
    from compressor.engine import run as run_recipe
    from compressor.interruption import Interruption
    from compressor.progress import Progress

    be_quiet()
    console = Console(quiet=not is_main())
    interruption = Interruption()
    with interruption.installed():
        run_recipe(recipe, output, Progress(console), interruption)
    _show_family(console, output / "family")


def _show_family(console: Console, folder: Path) -> None:
    from compressor.export.manifest import MANIFEST, read_manifest
    from compressor.export.report import terminal_table

    if (folder / MANIFEST).is_file():
        wide = console if console.is_terminal and console.width >= 120 else wide_console()
        wide.print(terminal_table(read_manifest(folder)))
        console.print(f"family: {folder}", highlight=False)


def _planned_sizes(recipe: Recipe) -> Table:
    from compressor.planning import planned_sizes

    table = Table("size", "kept layers", "heads", "neurons", "parameters", "MACs")
    for size in planned_sizes(recipe):
        table.add_row(*size)
    return table


def _plain(value: Any) -> str:
    if hasattr(value, "model_dump"):
        return str(value.model_dump(exclude_defaults=True))
    return str(list(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    main()
