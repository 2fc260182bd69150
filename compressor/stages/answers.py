"""Logits of an ONNX file over batches of torch tensors."""

from pathlib import Path

from compressor.export.session import open_session, run_session
from compressor.tasks import Array
from compressor.training import Batches, predict


def graph_answers(path: Path, batches: Batches) -> Array:
    """Logits [N, outputs] of every row, in order."""
    import torch

    session = open_session(path)
    return predict(
        lambda batch: torch.from_numpy(run_session(session, {name: value.numpy() for name, value in batch.items()})),
        batches,
    )
