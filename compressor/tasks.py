"""What a task is: its labels, its losses, its metric, and what a trivial answer scores."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics
from torch import Tensor
from torch.nn import functional

from compressor.losses import regression, soft_cross_entropy

Array = np.ndarray[Any, Any]


class Head(ABC):
    """What an encoder's outputs are trained towards."""

    @abstractmethod
    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss against labels, a mean over texts: logits [B, outputs], labels [B]."""

    @abstractmethod
    def logit_loss(self, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
        """Distillation loss between two heads' outputs [B, outputs]."""


class Task(Head):
    """A head of a fine-tuned encoder, and how its answers are measured.

    Attributes:
        metric: name of the metric, a key of `METRICS`.
        outputs: numbers that the head gives for a text.
    """

    METRICS: ClassVar[dict[str, Any]]
    metric: str
    outputs: int

    @abstractmethod
    def predict(self, logits: Array) -> Array:
        """Logits [N, outputs] to what the labels are compared with, [N]."""

    @abstractmethod
    def agreement(self, logits: Array, others: Array) -> float:
        """How alike two models answer, 1.0 for the same answers."""

    @abstractmethod
    def baseline(self, labels: Array) -> float | None:
        """What the best constant answer scores; None where it is not defined."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What a transformers configuration needs to know of the task."""

    def score(self, logits: Array, labels: Array) -> float:
        """The metric, as a fraction (1.0 is perfect)."""
        return float(self.METRICS[self.metric](labels, self.predict(logits)))


def _f1(labels: Array, predictions: Array) -> float:
    """F1 of label 1 for two labels, the mean over labels for more."""
    average = "binary" if max(labels.max(), predictions.max()) <= 1 else "macro"
    return float(metrics.f1_score(labels, predictions, average=average, zero_division=0))


def _correlation(measure: Any) -> Any:
    def correlate(labels: Array, predictions: Array) -> float:
        # A constant has no correlation with anything: scipy would warn and return NaN.
        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return 0.0
        return float(measure(labels, predictions)[0])

    return correlate


@dataclass(frozen=True)
class Classification(Task):
    """One of several labels for a text or a pair of texts."""

    labels: tuple[str, ...]
    metric: str = "accuracy"

    METRICS: ClassVar[dict[str, Any]] = {
        "accuracy": metrics.accuracy_score,
        "f1": _f1,
        "matthews": metrics.matthews_corrcoef,
    }

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return len(self.labels)

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), labels)

    def logit_loss(self, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
        return soft_cross_entropy(teacher, student, temperature=temperature)

    def predict(self, logits: Array) -> Array:
        return logits.argmax(-1)

    def agreement(self, logits: Array, others: Array) -> float:
        """Fraction of texts that get the same label."""
        return float((self.predict(logits) == self.predict(others)).mean())

    def baseline(self, labels: Array) -> float | None:
        """The metric of answering the most frequent label always."""
        majority = np.bincount(labels).argmax()
        return float(self.METRICS[self.metric](labels, np.full_like(labels, majority)))

    def config(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }


@dataclass(frozen=True)
class Regression(Task):
    """One number for a text or a pair of texts."""

    metric: str = "spearman"
    outputs: int = 1

    METRICS: ClassVar[dict[str, Any]] = {"spearman": _correlation(spearmanr), "pearson": _correlation(pearsonr)}

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.mse_loss(logits.float().squeeze(-1), labels)

    def logit_loss(self, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
        return regression(teacher, student, temperature=temperature)

    def predict(self, logits: Array) -> Array:
        return logits[:, 0]

    def agreement(self, logits: Array, others: Array) -> float:
        """Pearson correlation of the two outputs."""
        return float(self.METRICS["pearson"](self.predict(logits), self.predict(others)))

    def baseline(self, labels: Array) -> float | None:
        return None

    def config(self) -> dict[str, Any]:
        return {"num_labels": 1, "id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}


class MaskedWords(Head):
    """Words that are hidden in a text: BERT's pre-training, labels -100 where nothing is hidden."""

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy: the mean over a text's hidden words, then over texts; logits [B, n, words], labels [B, n].

        Texts count alike, also those in which nothing is hidden (as 0): parts of a batch then add up to it.
        """
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
        hidden = (labels != -100).sum(1).clamp(min=1)
        return (loss.view_as(labels).sum(1) / hidden).mean()

    def logit_loss(self, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
        raise NotImplementedError("a teacher's guesses at hidden words are not distilled")


def label_tensor(task: Task, labels: list[Any]) -> Tensor:
    """Labels of a batch in the type that the task's loss needs."""
    return torch.tensor(labels, dtype=torch.float32 if isinstance(task, Regression) else torch.long)
