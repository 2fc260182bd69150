"""Fingerprints: what a stage's result depends on, as one hash, so that finished work is known again."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from compressor.files import fitting, sha256
from compressor.recipe import FileData, Recipe, ScratchModel
from compressor.settings import FileCorpus
from compressor.stages import Stage
from compressor.stages.distill import Distill
from compressor.stages.prune_vocabulary import PruneVocabulary
from compressor.stages.search import Search

# To be raised when a stage's artifact changes its form or meaning: everything is then made anew.
ARTIFACTS = 1


def stage_fingerprints(recipe: Recipe) -> list[str]:
    """One hash a stage: of its settings, of what it reads, and of the stage before it."""
    fingerprints: list[str] = []
    previous = _hash({"artifacts": ARTIFACTS, "seed": recipe.seed, **_inputs(recipe)})
    for stage in recipe.stages:
        previous = _hash({"previous": previous, "stage": stage.model_dump(mode="json"), **_read_parts(recipe, stage)})
        fingerprints.append(previous)
    return fingerprints


def _inputs(recipe: Recipe) -> dict[str, Any]:
    """Model, task and training data, by content where they are local."""
    data = recipe.data.model_dump(mode="json")
    data.pop("validation", None)
    data.pop("unlabelled", None)
    if isinstance(recipe.data, FileData):
        data["train"] = _file(Path(recipe.data.train))
    model = recipe.model.model_dump() if isinstance(recipe.model, ScratchModel) else _model(recipe.model)
    return {"model": model, "task": recipe.task.model_dump(), "data": data}


def _read_parts(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    if "family" in stage.reads:
        parts["family"] = recipe.family.model_dump(mode="json")
    if "objective" in stage.reads:
        parts["objective"] = recipe.objective_of(stage).model_dump(mode="json")
    if "unlabelled" in stage.reads and isinstance(recipe.data, FileData) and recipe.data.unlabelled:
        parts["unlabelled"] = _file(Path(recipe.data.unlabelled))
    if isinstance(stage, Distill) and isinstance(stage.student, str):
        parts["student"] = _model(stage.student)
    if isinstance(stage, Distill | PruneVocabulary) and isinstance(stage.corpus, FileCorpus):
        parts["corpus"] = _corpus(stage.corpus)
    if isinstance(stage, Search) and stage.rows:
        parts["rows"] = _file(Path(stage.rows))
    if "validation" in stage.reads:
        data = recipe.data
        parts["validation"] = (
            _file(Path(data.validation)) if isinstance(data, FileData) else data.model_dump(mode="json")
        )
    return parts


def _corpus(corpus: FileCorpus) -> list[tuple[str, int, int]]:
    """A corpus is known by its files' sizes and times."""
    files = [file for pattern in corpus.patterns for file in fitting(pattern)]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _model(source: str) -> Any:
    folder = Path(source)
    if not folder.is_dir():
        return source
    return {str(path.relative_to(folder)): _file(path) for path in sorted(folder.glob("*")) if path.is_file()}


def _file(path: Path) -> str:
    """Hash of a file's content; its name where it is missing, which the stage that reads it will tell."""
    return _cached(path, path.stat().st_mtime_ns) if path.is_file() else str(path)


@lru_cache(maxsize=256)
def _cached(path: Path, _changed: int) -> str:
    return sha256(path)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
