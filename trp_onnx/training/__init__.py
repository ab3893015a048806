"""Trained Rank Pruning: train a network with periodic projection, so that factorising it costs next to nothing.

In the process of the user (`trainable` -> `job` -> `supervisor`) a model becomes a run directory. In
worker processes, which alone see the training runtime (`isolated_runtime`), the directory becomes trained
weights (`worker` -> `loop`, which puts `engine`, `batches`, `teacher`, `schedules`, `projection`, `optimizer`,
`validation`, `checkpoint` and `communicator` together).
"""

from trp_onnx.training.options import TrainingOptions, read_training

__all__ = ["TrainingOptions", "read_training"]
