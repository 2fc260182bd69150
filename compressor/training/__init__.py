"""Training: batches, teachers, the step that several sub-networks take together, and the loop around it."""

from compressor.training.batches import Batch, Batches, split_labels
from compressor.training.loop import Training
from compressor.training.prediction import predict, whole_model
from compressor.training.teacher import Teacher

__all__ = ["Batch", "Batches", "Teacher", "Training", "predict", "split_labels", "whole_model"]
