"""One size of a family as a folder that stands alone."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from compressor import models
from compressor.export.manifest import (
    WEIGHTS,
    Manifest,
    Size,
    checked_file,
    describe_files,
    read_manifest,
    write_manifest,
)
from compressor.files import make_readable

# The file names of the optimum library.
_GRAPHS = {"fp32": "model.onnx", "int8": "model_int8.onnx"}


def write_standalone(family: Path, name: str, folder: Path) -> None:
    """Write `config.json`, `model.safetensors`, `model.onnx`, `model_int8.onnx` and the tokenizer of one size.

    `from_pretrained` (after `import compressor`) and plain onnxruntime read the folder.

    Args:
        folder: exists.

    Raises:
        CompressorError: there is no such size, or a file of the family was changed.
    """
    manifest = read_manifest(family)
    _check_weights(family, manifest)
    _write(family, manifest, name, models.size_loader(family), folder)


def write_all_standalone(family: Path, folder: Path) -> None:
    """Write a family whose sizes share weights as one whose sizes stand alone.

    Args:
        folder: exists.
    """
    manifest = read_manifest(family)
    _check_weights(family, manifest)
    load, sizes = models.size_loader(family), []
    for size in manifest.sizes:
        (folder / size.name).mkdir()
        _write(family, manifest, size.name, load, folder / size.name)
        sizes.append(_alone(size, folder))
    for file in manifest.tokenizer:
        shutil.copyfile(family / file, folder / file)
    alone = replace(manifest, layout="standalone", sizes=tuple(sizes), files=describe_files(folder))
    write_manifest(alone, folder)


def _check_weights(family: Path, manifest: Manifest) -> None:
    """Raise CompressorError if weights that graphs refer to were changed."""
    if manifest.layout == "shared":
        for precision in manifest.sizes[0].graphs:
            checked_file(family, manifest, WEIGHTS[precision])


def _write(family: Path, manifest: Manifest, name: str, load: Callable[[str], Any], folder: Path) -> None:
    with models.quiet():
        load(name).save_pretrained(folder)
    for precision, graph in manifest.size(name).graphs.items():
        # Read with the weights that it refers to, written with these inside.
        onnx.save(onnx.load(checked_file(family, manifest, graph)), folder / _GRAPHS[precision])
    for file in manifest.tokenizer:
        shutil.copyfile(checked_file(family, manifest, file), folder / file)
    make_readable(folder)


def _alone(size: Size, folder: Path) -> Size:
    graphs = {precision: f"{size.name}/{_GRAPHS[precision]}" for precision in size.graphs}
    return replace(
        size, graphs=graphs, bytes={precision: (folder / graph).stat().st_size for precision, graph in graphs.items()}
    )
