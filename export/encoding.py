"""Texts as token ids, without transformers."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from compressor.errors import CompressorError, one_line
from compressor.export.session import Array

# A text, or two that belong together.
Text = str | tuple[str, str]


class Encoder:
    """Cuts texts into the pieces that the family was trained on.

    Args:
        folder: with `tokenizer.json` and `tokenizer_config.json`.
        max_length: tokens that texts are cut to.
        pairs: whether the family was trained on pairs; None where nobody knows.

    Raises:
        CompressorError: the files are damaged.
    """

    def __init__(self, folder: Path, max_length: int, pairs: bool | None = None) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            padding = config["pad_token"]
            self._padding = padding["content"] if isinstance(padding, dict) else padding
        except Exception as error:  # tokenizers raises plain exceptions
            raise CompressorError(f"the tokenizer of {folder} cannot be read: {one_line(error)}") from error
        self.max_length = max_length
        self._pairs = pairs
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """Each text cut into tokens.

        Raises:
            CompressorError: a text is empty or none, or a pair where single texts are answered, or the reverse.
        """
        for number, text in enumerate(texts, start=1):
            self._check(f"text {number}", text if isinstance(text, tuple) else (text,))
        return self._tokenizer.encode_batch(list(texts))

    def _check(self, name: str, parts: tuple[str, ...]) -> None:
        if not all(isinstance(part, str) for part in parts):
            wrong = next(part for part in parts if not isinstance(part, str))
            raise CompressorError(f"{name}: {wrong!r} is no text")
        if len(parts) > 2:
            raise CompressorError(f"{name}: {len(parts)} texts in a tuple; a pair has two, give others as a list")
        if not all(part.strip() for part in parts):
            raise CompressorError(f"{name} is empty")
        if self._pairs is not None and self._pairs != (len(parts) == 2):
            asked = (
                "pairs of texts; give two (a tuple, or a tab between them)"
                if self._pairs
                else "single texts, not pairs"
            )
            raise CompressorError(f"{name}: this family was trained on {asked}")

    def batches(self, encodings: Sequence[Encoding], size: int) -> Iterator[tuple[list[int], dict[str, Array]]]:
        """Places of the texts and inputs [B, n] of each batch; texts of like length stand together."""
        order = sorted(range(len(encodings)), key=lambda place: len(encodings[place].ids))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            yield places, self._padded([encodings[place] for place in places])

    def _padded(self, encodings: Sequence[Encoding]) -> dict[str, Array]:
        shape = len(encodings), max(len(encoding.ids) for encoding in encodings)
        filler = {"input_ids": self._tokenizer.token_to_id(self._padding), "attention_mask": 0, "token_type_ids": 0}
        inputs = {name: np.full(shape, value, dtype=np.int64) for name, value in filler.items()}
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            inputs["input_ids"][row, :length] = encoding.ids
            inputs["attention_mask"][row, :length] = encoding.attention_mask
            inputs["token_type_ids"][row, :length] = encoding.type_ids
        return inputs
