"""Which hidden states of a teacher and a student are compared (layer matching).

State 0 is the output of the embeddings, state l that of layer l. The authors' strategies are `matching_alignment` in
their code; two of them fail there and are given the meaning that their names have (`skip` crashes, `last` is right for
12 to 6 layers alone).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

from compressor.errors import CompressorError
from compressor.settings import ObjectiveSettings, StateLists


@dataclass(frozen=True)
class Matching:
    """Indices into the hidden states of teacher and student, pair by pair."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]


def match(how: str | StateLists, teacher: int, student: int) -> Matching:
    """Match the states of encoders with so many layers.

    Args:
        how: `skip`: the outputs of layers that stand at the same part of both depths, as many as there are (12 to 4
            layers: 3, 6, 9, 12 and 1 to 4; 12 to 9: 4, 8, 12 and 3, 6, 9). `emb+skip`: the embeddings too, the authors'
            default. `final`: the last outputs. `last-3`: the last three. Lists: the user's own.

    Raises:
        ValueError: more states are asked for than there are.

    Example:
        >>> match("emb+skip", 12, 4)
        Matching(teacher=(0, 3, 6, 9, 12), student=(0, 1, 2, 3, 4))
    """
    if isinstance(how, StateLists):
        for name, states, layers in (("teacher", how.teacher, teacher), ("student", how.student, student)):
            if max(states) > layers:
                raise ValueError(f"{name}: there is no state {max(states)}; it has states 0 to {layers}")
        return Matching(how.teacher, how.student)
    if how in ("skip", "emb+skip"):
        common = gcd(teacher, student)
        embeddings = (0,) if how == "emb+skip" else ()
        places = range(1, common + 1)
        return Matching(
            (*embeddings, *(place * (teacher // common) for place in places)),
            (*embeddings, *(place * (student // common) for place in places)),
        )
    count = 1 if how == "final" else int(how.removeprefix("last-"))
    if count > min(teacher, student):
        raise ValueError(f"{how}: teacher and student have {teacher} and {student} layers")
    return Matching(*(tuple(range(layers - count + 1, layers + 1)) for layers in (teacher, student)))


def check_matching(objective: ObjectiveSettings, teacher: int, students: Iterable[int], path: str) -> None:
    """Raise CompressorError if an objective's states are not there in encoders with so many layers."""
    if objective.matching is None:
        return
    for student in students:
        try:
            matching = match(objective.matching, teacher, student)
        except ValueError as error:
            raise CompressorError(f"{path}: objective.matching: {error}") from error
        layers = [name for name in ("layer_pair", "layer_distance", "layer_angle") if getattr(objective, name)]
        if layers and len(matching.teacher) < 3:
            raise CompressorError(
                f"{path}: objective.matching: {len(matching.teacher)} matched states have no {', '.join(layers)}, "
                "which need three; match more of them or leave the weights out"
            )
