"""Training: batches, teachers, the step that several sub-networks take together, and the loop around it."""

from compressor.training.batches import Batch, Batches, split_labels
from compressor.training.checkpoints import Checkpoints
from compressor.training.loop import Training, optimizer_of, steps_of
from compressor.training.monitor import Monitor
from compressor.training.prediction import predict, whole_model
from compressor.training.records import Listener, Records
from compressor.training.sampling import Sampler, Sandwich, everything
from compressor.training.step import GradientStep
from compressor.training.stream import Stream
from compressor.training.teacher import Teacher
from compressor.training.tracking import check_tracking, tracked

__all__ = [
    "Batch",
    "Batches",
    "Checkpoints",
    "GradientStep",
    "Listener",
    "Monitor",
    "Records",
    "Sampler",
    "Sandwich",
    "Stream",
    "Teacher",
    "Training",
    "check_tracking",
    "everything",
    "optimizer_of",
    "predict",
    "split_labels",
    "steps_of",
    "tracked",
    "whole_model",
]
