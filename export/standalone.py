"""One size of a family as a folder that stands alone."""

import shutil
from dataclasses import replace
from pathlib import Path

import onnx

from compressor import models
from compressor.export.manifest import WEIGHTS, Size, checked_file, describe_files, read_manifest, write_manifest

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
    size = manifest.size(name)
    with models.quiet():
        models.load_size(family, name).save_pretrained(folder)
    for precision, graph in size.graphs.items():
        if manifest.layout == "shared":
            checked_file(family, manifest, WEIGHTS[precision])
        # Read with the weights that it refers to, written with these inside.
        onnx.save(onnx.load(checked_file(family, manifest, graph)), folder / _GRAPHS[precision])
    for file in manifest.tokenizer:
        shutil.copyfile(checked_file(family, manifest, file), folder / Path(file).name)
    for path in folder.iterdir():
        # safetensors writes for the owner alone; what ships is served by somebody else.
        path.chmod(0o644)


def write_all_standalone(family: Path, folder: Path) -> None:
    """Write a family whose sizes share weights as one whose sizes stand alone.

    Args:
        folder: exists.
    """
    manifest = read_manifest(family)
    sizes = []
    for size in manifest.sizes:
        (folder / size.name).mkdir()
        write_standalone(family, size.name, folder / size.name)
        sizes.append(_alone(size, folder))
    for file in manifest.tokenizer:
        shutil.copyfile(family / file, folder / file)
    alone = replace(manifest, layout="standalone", sizes=tuple(sizes), files=describe_files(folder))
    write_manifest(alone, folder)


def _alone(size: Size, folder: Path) -> Size:
    graphs = {precision: f"{size.name}/{_GRAPHS[precision]}" for precision in size.graphs}
    return replace(
        size, graphs=graphs, bytes={precision: (folder / graph).stat().st_size for precision, graph in graphs.items()}
    )
