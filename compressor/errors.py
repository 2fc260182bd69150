"""The one exception for what a user can mend."""


class CompressorError(Exception):
    """A mistake in a recipe, a file, a model or an output folder, told in one line.

    The message says what is wrong, where (key path, file and row) and what would be right.
    The command line prints it without a traceback and exits with code 2.
    """
