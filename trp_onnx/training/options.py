"""How a network is trained: one schema for the command line, the Python API and the run directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from trp_onnx.errors import UsageError
from trp_onnx.files.documents import read_toml
from trp_onnx.schema import conform, converted

Strategy = Literal["ranks", "replan", "energy", "paper"]
Schedule = Literal["cosine", "step", "constant"]
Optimizer = Literal["sgd", "adam"]
View = Literal["crop", "flip", "resized", "color"]
Distance = Literal["auto", "kl", "mse"]
_LARGEST = 2**63 - 1
Count = Annotated[int, Meta(ge=1, le=_LARGEST)]
Whole = Annotated[int, Meta(ge=0, le=_LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=_LARGEST)]
NotNegative = Annotated[float, Meta(ge=0, le=_LARGEST)]


@dataclass(frozen=True)
class TrainingOptions:
    """Training with projection.

    Raises:
        UsageError: A value is of the wrong kind or out of its range, or there is nothing to train.

    Attributes:
        epochs: Passes over the training part, with projection; 0 to train the factors alone.
        minutes: Wall time of the passes at most; the step size falls over what comes first. None for any.
        batch: Samples of one step, over all workers.
        micro_batch: Samples of one forward pass, over which BatchNormalization takes its statistics; a
            step adds the gradients of `batch / micro_batch` of them up, wherever they run.
        optimizer: "sgd", or "adam", whose step size is a hundredth of that of SGD or less.
        rate: Peak step size.
        schedule: How the step size falls.
        warmup: Steps of linear rise.
        milestones: Where "step" divides the rate by ten, as parts of the whole.
        momentum: SGD momentum.
        nesterov: Whether momentum looks ahead.
        weight_decay: On weights; not on biases and BatchNormalization.
        clip: Largest norm of the gradient; None for any.
        strategy: What decides on ranks, see the documentation; None for "paper" with an energy alone, else "ranks".
        every: m, steps from one projection to the next.
        nuclear: lambda of the nuclear norm; 0 for none.
        nuclear_every_step: Add it on every step, divided by m, not on projection steps alone.
        labels: Weight of the cross-entropy on labels; None for 0.3 beside distillation, 1 alone.
        distill: Weight of the distance to the teacher's outputs; None for 0.7 with labels, 1 without.
        temperature: T of the softened outputs.
        distill_kind: Distance to the teacher's outputs; "auto" is KL for class scores, else the mean square error.
        output_weights: Weight of an output in the loss by its name, 1 where not given.
        augment: Any of "crop", "flip", "resized", "color".
        validation: Part of the data that is held out to choose the best checkpoint.
        finetune_epochs: Passes in which the factors are trained after factorisation.
        finetune_rate: Peak step size of the passes over the factors.
        workers: Processes on this machine; more than one needs trp-onnx[mpi].
        checkpoint_seconds: Longest time between two checkpoints.
        seed: Seeds the data's order and the augmentation.
    """

    epochs: Whole = 12
    minutes: Positive | None = None
    batch: Count = 128
    micro_batch: Count = 64
    optimizer: Optimizer = "sgd"
    rate: Positive = 0.05
    schedule: Schedule = "cosine"
    warmup: Whole = 200
    milestones: tuple[NotNegative, ...] = (0.5, 0.75)
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 1e-4
    clip: Positive | None = None
    strategy: Strategy | None = None
    every: Count = 20
    nuclear: NotNegative = 0.0
    nuclear_every_step: bool = False
    labels: NotNegative | None = None
    distill: NotNegative | None = None
    temperature: Positive = 4.0
    distill_kind: Distance = "auto"
    output_weights: dict[str, NotNegative] = field(default_factory=dict)
    augment: tuple[View, ...] = ("crop", "flip")
    validation: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    finetune_epochs: Whole = 0
    finetune_rate: Positive = 0.005
    workers: Count = 1
    checkpoint_seconds: NotNegative = 60.0
    seed: Whole = 0

    def __post_init__(self) -> None:
        conform(self)
        if self.epochs + self.finetune_epochs == 0:
            raise UsageError("there are no epochs, neither before nor after factorisation")
        if self.labels == 0 and self.distill == 0:
            raise UsageError("give labels or distill a weight: there is nothing else to learn from")


def read_training(path: Path | None, **overrides: Any) -> TrainingOptions:
    """Options from a TOML file, with whatever is given (not None) in `overrides` on top.

    Raises:
        UsageError: The file cannot be read, or a key or a value is wrong.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_toml(path, "the training file", UsageError)
    values |= {key: value for key, value in overrides.items() if value is not None}
    return converted(values, TrainingOptions, "training")
