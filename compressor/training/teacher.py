"""The teacher of a stage: what it says of a batch, for every student of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from compressor.losses.objective import Outputs, stack_states
from compressor.supernet.subnetworks import DepthRule, Subnetwork, paired_states
from compressor.supernet.supernetwork import SuperNetwork
from compressor.training.batches import Batch


@dataclass(frozen=True)
class Teacher:
    """The model that is distilled, and which sub-network of it teaches each size.

    Attributes:
        supernet: its weights do not change, its dropout is off.
        sizes: by the student's name; equal ones are run once a batch.
        rule: how the students' hidden states are paired with the teacher's.
    """

    supernet: SuperNetwork
    sizes: Mapping[str, Subnetwork]
    rule: DepthRule

    def __post_init__(self) -> None:
        self.supernet.train(False)
        self.supernet.model.requires_grad_(False)

    @torch.no_grad()
    def answer(self, inputs: Batch, students: Mapping[str, Subnetwork], states: bool) -> dict[str, Outputs]:
        """Logits and paired states for every student of a batch."""
        embeddings = self.supernet.embed(inputs)
        mask = self.supernet.spread(embeddings, inputs["attention_mask"])
        outputs = {
            size: self.supernet.run(size, embeddings, mask, hidden_states=states) for size in set(self.sizes.values())
        }
        layers = self.supernet.dimensions.layers
        # Students of one depth are compared with the same states: they are stacked once for all widths.
        shared: dict[tuple[Subnetwork, tuple[int, ...]], Outputs] = {}
        answers = {}
        for name, student in students.items():
            key = (self.sizes[name], paired_states(student.kept, layers, self.rule))
            if key not in shared:
                output = outputs[key[0]]
                shared[key] = Outputs(output.logits, stack_states(output.hidden_states, key[1]) if states else None)
            answers[name] = shared[key]
        return answers
