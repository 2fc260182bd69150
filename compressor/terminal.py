"""How commands speak and how they end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from compressor.errors import CompressorError, OneProcessError

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

USER_ERROR = 2


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """A user's mistake as one message and exit code 2; anything else says how to see more."""
    try:
        yield
    except (CompressorError, OSError) as error:
        if debug:
            raise
        _fail(f"error: {error}", USER_ERROR, error)
    except KeyboardInterrupt as error:
        _fail(str(error) or "stopped", getattr(error, "code", 130), error)
    except Exception as error:
        if debug:
            raise
        words = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        _fail(f"internal error: {words}; --debug shows where", 1, error)


def _fail(message: str, code: int, cause: BaseException) -> None:
    # A launcher's processes fail alike, and the main one says why; the others say what they alone may know.
    alike = isinstance(cause, KeyboardInterrupt | CompressorError) and not isinstance(cause, OneProcessError)
    if is_main() or not alike:
        typer.echo(message, err=True)
    raise typer.Exit(code) from cause


def is_main() -> bool:
    """Whether this is the process that speaks, of those that a launcher started; read without torch."""
    return os.environ.get("RANK", "0") == "0"


def be_quiet() -> None:
    """No bars and no chatter of libraries between the lines of a run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def wide_console() -> Console:
    """A console that does not fold a table into a pipe's 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
