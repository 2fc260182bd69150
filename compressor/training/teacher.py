"""The teacher of a stage: what it says of a batch, for every student of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.losses.matching import Matching, match
from compressor.losses.objective import Outputs, geometry
from compressor.settings import ObjectiveSettings
from compressor.supernet.subnetworks import DepthRule, Subnetwork, paired_states
from compressor.supernet.supernetwork import SuperNetwork
from compressor.training.batches import Batch


@dataclass(frozen=True)
class Teacher:
    """The model that is distilled, and which sub-network of it teaches each size.

    Attributes:
        supernet: its weights do not change, its dropout is off.
        sizes: by the student's name; equal ones are run once a batch.
        rule: how the students' hidden states are paired with the teacher's if the objective does not say.
    """

    supernet: SuperNetwork
    sizes: Mapping[str, Subnetwork]
    rule: DepthRule

    def __post_init__(self) -> None:
        self.supernet.train(False)
        self.supernet.model.requires_grad_(False)

    @torch.no_grad()
    def answer(
        self, inputs: Batch, students: Mapping[str, Subnetwork], objective: ObjectiveSettings
    ) -> dict[str, Outputs]:
        """Logits and the geometry of paired states for every student of a batch."""
        embeddings = self.supernet.embed(inputs)
        mask = self.supernet.spread(embeddings, inputs["attention_mask"])
        outputs = {
            size: self._outputs(size, embeddings, mask, inputs, objective)
            for size in {self.sizes[name] for name in students}
        }
        # Students of one depth are compared with the same states, whatever their widths.
        shared: dict[tuple[Subnetwork, tuple[int, ...]], Outputs] = {}
        answers = {}
        for name, student in students.items():
            key = (self.sizes[name], self.matching(student, objective).teacher)
            if key not in shared:
                whole = outputs[key[0]]
                shared[key] = Outputs(whole.logits, whole.geometry.select(key[1]) if whole.geometry else None)
            answers[name] = shared[key]
        return answers

    def matching(self, student: Subnetwork, objective: ObjectiveSettings) -> Matching:
        """Which states are compared."""
        layers, own = self.supernet.dimensions.layers, len(student.kept)
        if objective.matching is not None:
            return match(objective.matching, layers, own)
        return Matching(paired_states(student.kept, layers, self.rule), tuple(range(own + 1)))

    def _outputs(
        self, size: Subnetwork, embeddings: Tensor, mask: Tensor, inputs: Batch, objective: ObjectiveSettings
    ) -> Outputs:
        output = self.supernet.run(size, embeddings, mask, hidden_states=objective.uses_states)
        if not objective.uses_states:
            return Outputs(output.logits)
        return Outputs(output.logits, geometry(objective, output.hidden_states, inputs["attention_mask"]))
