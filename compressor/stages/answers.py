"""Logits of an ONNX file over batches of torch tensors."""

from pathlib import Path

from compressor.export.session import Session
from compressor.tasks import Array
from compressor.training import Batches, predict


def graph_answers(path: Path, batches: Batches) -> Array:
    """Logits [N, outputs] of every row, in order."""
    import torch

    session = Session(path)
    return predict(
        lambda batch: torch.from_numpy(session.run({name: value.numpy() for name, value in batch.items()})),
        batches,
    )
