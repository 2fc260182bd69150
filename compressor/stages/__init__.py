"""The stages that a recipe composes, one small file each, in the order in which they usually stand."""

from typing import Annotated

from pydantic import Field

from compressor.stages.base import Stage
from compressor.stages.benchmark import Benchmark
from compressor.stages.depth import Depth
from compressor.stages.distill import Distill
from compressor.stages.evaluate import Evaluate
from compressor.stages.export import Export
from compressor.stages.finetune import Finetune
from compressor.stages.finetune_family import FinetuneFamily
from compressor.stages.prune_vocabulary import PruneVocabulary
from compressor.stages.reorder import Reorder
from compressor.stages.report import Report
from compressor.stages.search import Search
from compressor.stages.width import Width

AnyStage = Annotated[
    Finetune
    | Distill
    | Reorder
    | Width
    | Depth
    | FinetuneFamily
    | PruneVocabulary
    | Search
    | Export
    | Evaluate
    | Benchmark
    | Report,
    Field(discriminator="type"),
]

STAGES: dict[str, type[Stage]] = {
    stage.model_fields["type"].default: stage
    for stage in (
        Finetune,
        Distill,
        Reorder,
        Width,
        Depth,
        FinetuneFamily,
        PruneVocabulary,
        Search,
        Export,
        Evaluate,
        Benchmark,
        Report,
    )
}

__all__ = ["STAGES", "AnyStage", "Stage"]
