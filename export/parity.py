"""Whether an ONNX file answers as the PyTorch model does: a gate, not a warning."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import CompressorError
from compressor.export.session import Array, Session

# Batch sizes and lengths: single texts, single tokens, and shapes that the example of the export did not have.
SHAPES = ((1, 1), (1, 7), (2, 16), (5, 33), (8, 12))


def check_fp32(model: Any, path: Path, tolerance: float, longest: int) -> float:
    """Compare logits over several shapes and paddings of random token ids.

    Args:
        longest: tokens that the model can read; longer shapes are cut.

    Returns:
        The largest absolute difference.

    Raises:
        CompressorError: it exceeds the tolerance.
    """
    session = Session(path)
    worst = 0.0
    for label, inputs in _inputs(model.config, session.inputs, longest):
        difference = float(np.abs(_torch_logits(model, inputs) - session.run(_arrays(inputs))).max())
        # `not <=` catches NaN too.
        if not difference <= tolerance:
            raise CompressorError(
                f"{path.name}: logits differ from PyTorch's by {difference:.2e} ({label}), {tolerance:.0e} is allowed"
            )
        worst = max(worst, difference)
    return worst


def check_int8(
    model: Any, path: Path, task: Any, batches: Any, mixed: Any, labels: Array | None, limits: tuple[float, float]
) -> dict[str, float]:
    """Compare answers on real texts, and on some of them padded on the left and with words masked out.

    Args:
        task: a `compressor.tasks.Task`.
        batches: of the texts, with masks.
        mixed: batches of texts that differ in length, for the other paddings.
        labels: [N] of the texts in `batches`, or None to skip the metric.
        limits: least agreement, largest loss of the metric.

    Returns:
        `int8_agreement`, and `int8_drop` where there are labels.

    Raises:
        CompressorError: int8 agrees too little or loses too much.
    """
    session = Session(path)
    expected, found = _answers(model, session, map(_inputs_alone, batches))
    moved = [_answers(model, session, map(move, map(_inputs_alone, mixed))) for move in (_left, _holey)]
    agreement = min(task.agreement(*both) for both in ((expected, found), *moved))
    if not agreement >= limits[0]:
        raise CompressorError(f"{path.name} agrees with PyTorch on {agreement:.3f}, {limits[0]:.3f} is asked for")
    result = {"int8_agreement": agreement}
    if labels is not None:
        drop = task.score(expected, labels) - task.score(found, labels)
        if not drop <= limits[1]:
            raise CompressorError(f"{path.name} loses {drop:.3f} {task.metric}, {limits[1]:.3f} is allowed")
        result["int8_drop"] = drop
    return result


def _inputs_alone(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def _inputs(config: Any, names: Sequence[str], longest: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Random token ids of every shape, with each padding that fits it."""
    random = torch.Generator().manual_seed(0)
    for batch, length in ((batch, min(length, longest)) for batch, length in SHAPES):
        ids = torch.randint(0, config.vocab_size, (batch, length), generator=random)
        for padding, mask in _masks(batch, length, random):
            inputs = {"input_ids": torch.where(mask.bool(), ids, config.pad_token_id or 0), "attention_mask": mask}
            if "token_type_ids" in names:
                types = getattr(config, "type_vocab_size", 1)
                inputs["token_type_ids"] = torch.randint(0, max(types, 1), ids.shape, generator=random)
            yield f"batch {batch}, length {length}, {padding}", inputs


def _masks(batch: int, length: int, random: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    position = torch.arange(length).expand(batch, length)
    kept = torch.randint(1, length + 1, (batch, 1), generator=random)
    yield "no padding", torch.ones(batch, length, dtype=torch.long)
    if length > 1:
        yield "right padding", (position < kept).long()
        yield "left padding", (position >= length - kept).long()
        holey = torch.rand(batch, length, generator=random) < 0.7
        holey[:, 0] = True
        yield "holes", holey.long()


def _answers(model: Any, session: Session, batches: Iterable[dict[str, Tensor]]) -> tuple[Array, Array]:
    """Logits [N, outputs] of the model and of the session."""
    both = [(_torch_logits(model, inputs), session.run(_arrays(inputs))) for inputs in batches]
    exact, found = (np.concatenate(side) for side in zip(*both, strict=True))
    return exact, found


def _left(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same texts with their padding moved to the left."""
    mask = inputs["attention_mask"]
    shift = mask.shape[1] - mask.sum(1, keepdim=True)
    index = (torch.arange(mask.shape[1]) - shift) % mask.shape[1]
    return {name: value.gather(1, index) for name, value in inputs.items()}


def _holey(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same texts with every fifth token masked out."""
    position = torch.arange(inputs["attention_mask"].shape[1])
    return {**inputs, "attention_mask": inputs["attention_mask"] * (position % 5 != 3)}


@torch.no_grad()
def _torch_logits(model: Any, inputs: dict[str, Tensor]) -> Array:
    return model(**inputs).logits.numpy()


def _arrays(inputs: dict[str, Tensor]) -> dict[str, Array]:
    return {name: value.numpy() for name, value in inputs.items()}
