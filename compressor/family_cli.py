"""The commands that take a family: `compressor bench | pick | predict`."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from compressor.errors import CompressorError
from compressor.terminal import Debug, be_quiet, errors, wide_console

if TYPE_CHECKING:
    from compressor.export.family import Family, Prediction

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(metavar="FAMILY", help="The folder with family.json.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of one call.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts of one call.")]
Length = Annotated[int | None, typer.Option(min=1, help="Tokens of a text; as many as the family reads.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often each size is timed.")]
Precision = Annotated[str | None, typer.Option(help="fp32 or int8.")]


@app.command()
def bench(
    family: Folder,
    threads: Threads = 1,
    batch_size: BatchSize = 1,
    length: Length = None,
    rounds: Rounds = 30,
    throughput: Annotated[bool, typer.Option("--throughput", help="Texts a second instead, of --file.")] = False,
    file: Annotated[Path | None, typer.Option(help="Texts for --throughput, one a line; lengths matter.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of this machine, for money a million texts.")] = None,
    debug: Debug = False,
) -> None:
    """Time every size on this machine, in turn, round after round."""
    with errors(debug):
        opened = _family(family)
        if throughput:
            if file is None:
                raise CompressorError("--file: throughput depends on the lengths of texts; give a file with one a line")
            be_quiet()
            wide_console().print(_throughput_table(opened, [_parts(line) for line in _lines(file)], price_per_hour))
        else:
            timed = opened.timed(threads=threads, batch_size=batch_size, length=length, rounds=rounds)
            wide_console().print(_latency_table(timed))


@app.command()
def pick(
    family: Folder,
    latency: Annotated[str | None, typer.Option(help="That a call may take here, such as 5ms.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Points of the metric below the teacher's.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Of graph and weights, such as 20MB.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the size there, to stand alone.")] = None,
    precision: Precision = None,
    threads: Threads = 1,
    batch_size: BatchSize = 1,
    length: Length = None,
    rounds: Rounds = 20,
    debug: Debug = False,
) -> None:
    """Choose a size by what it must meet, timed on this machine, and say why it and not the next."""
    with errors(debug):
        needs = {
            "latency_ms": None if latency is None else _quantity("--latency", latency, _SECONDS) * 1000,
            "metric_drop": None if max_drop is None else max_drop / 100,
            "bytes": None if max_size is None else int(_quantity("--max-size", max_size, _BYTES)),
            "precision": precision,
        }
        _check_output(output)
        sizes = _family(family)
        if latency is not None:
            sizes = sizes.timed(threads=threads, batch_size=batch_size, length=length, rounds=rounds)
        choice = sizes.pick(**needs)
        print(choice)
        if output is not None:
            _write(family, choice.size.name, output)
            print(f"written: {output}")


@app.command()
def predict(
    family: Folder,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Else --file, or standard input.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Which size answers; the largest.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text a line; a tab parts the two of a pair.")] = None,
    precision: Precision = None,
    threads: Threads = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a text, with the score of every label.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Label and score of texts, a line each."""
    with errors(debug):
        if texts and file:
            raise CompressorError("--file: give texts or a file, not both")
        opened = _family(family)
        answering = opened.open(size or opened.sizes[0].name, precision, threads=threads)
        for prediction in answering.predict([_parts(text) for text in texts or _lines(file)]):
            print(_shown(prediction, as_json))


_SECONDS = {"ms": 1e-3, "s": 1.0, "us": 1e-6}
_BYTES = {"MB": 1e6, "MiB": 2.0**20, "KB": 1e3, "KiB": 2.0**10, "GB": 1e9, "GiB": 2.0**30}


def _quantity(option: str, text: str, units: dict[str, float]) -> float:
    """`5ms` in the base unit."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*([A-Za-z]+)\s*", text)
    if found and found[2] in units:
        try:
            return float(found[1]) * units[found[2]]
        except ValueError:
            pass
    first = next(iter(units))
    raise CompressorError(f"{option}: {text!r} is no number with a unit ({', '.join(units)}), such as 5{first}")


def _family(folder: Path) -> "Family":
    from compressor.export import Family

    return Family.load(folder)


def _latency_table(family: "Family") -> Table:
    conditions = family.manifest.benchmark
    table = Table(
        caption=f"Median and 95th percentile of {conditions['rounds']} rounds, batch {conditions['batch_size']}, "
        f"{conditions['length']} tokens, {conditions['threads']} thread(s), {conditions['machine']['processor']}.",
        caption_justify="left",
    )
    table.add_column("size")
    precisions = list(family.sizes[0].graphs)
    for precision in precisions:
        for title in (precision, f"{precision} ms", "p95"):
            table.add_column(title, justify="right")
    for size in family.sizes:
        cells = [size.name]
        for kind in precisions:
            metric = size.metrics.get(kind)
            cells.append("" if metric is None else f"{100 * metric:.1f}")
            cells += [f"{size.latency_ms[kind]:.2f}", f"{size.latency_p95_ms[kind]:.2f}"]
        table.add_row(*cells)
    return table


def _throughput_table(family: "Family", texts: list[Any], price_per_hour: float | None) -> Table:
    from compressor.export.throughput import ladder

    table = Table(caption=f"{len(texts)} texts, tokenising included.", caption_justify="left")
    table.add_column("arrangement")
    for title in ("metric", "texts/s", "faster", *(() if price_per_hour is None else ("cost of a million",))):
        table.add_column(title, justify="right")
    rungs = ladder(family, texts, price_per_hour)
    for rung in rungs:
        cells = [rung.title, "" if rung.metric is None else f"{100 * rung.metric:.1f}", f"{rung.texts_per_second:,.0f}"]
        cells.append(f"{rung.texts_per_second / rungs[0].texts_per_second:.1f}x")
        table.add_row(*cells, *(() if rung.cost is None else (f"{rung.cost:.3f}",)))
    return table


def _check_output(folder: Path | None) -> None:
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CompressorError(f"--output: {folder} is there already; give the name of a new folder")


def _write(family: Path, name: str, output: Path) -> None:
    be_quiet()
    from compressor.export.standalone import write_standalone
    from compressor.files import explained, replace_folder, temporary_folder

    with explained(f"size {name}", output.parent), temporary_folder(output) as folder:
        write_standalone(family, name, folder)
        replace_folder(folder, output)


def _lines(file: Path | None) -> Iterator[str]:
    """The lines of a file, or of standard input."""
    name = str(file) if file else "standard input"
    try:
        data = file.read_bytes() if file else sys.stdin.buffer.read()
        # Not splitlines, which would cut a text at a form feed or a line separator inside it.
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CompressorError(f"{name}: line {line} is not UTF-8") from error
    if lines == [""]:
        raise CompressorError(f"{name}: there is no text in it")
    yield from lines


def _parts(line: str) -> Any:
    first, tab, second = line.partition("\t")
    return (first, second) if tab else line


def _shown(prediction: "Prediction", as_json: bool) -> str:
    if as_json:
        return json.dumps(vars(prediction), ensure_ascii=False)
    return f"{prediction.score:.4f}" if prediction.label is None else f"{prediction.label}\t{prediction.score:.4f}"
