"""The one exception for what a user can mend, and the words that messages share."""

from collections.abc import Iterable
from difflib import get_close_matches


class CompressorError(Exception):
    """A mistake in a recipe, a file, a model or an output folder, told in one line.

    The message says what is wrong, where (key path, file and row) and what would be right.
    The command line prints it without a traceback and exits with code 2.
    """


class OneProcessError(CompressorError):
    """A mistake that one of a run's processes sees, and the others may not."""


def one_line(error: BaseException) -> str:
    """What a library's error says, as part of a message of ours: without line breaks, 300 characters at most."""
    return " ".join(str(error).split())[:300]


def nearest(name: object, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'? allowed: x, y`: the end of a message about a name that is not known."""
    names = list(allowed)
    near = get_close_matches(str(name), names, n=1)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" allowed: {', '.join(names)}"
