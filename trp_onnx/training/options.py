"""How a network is trained: one schema for the command line, the Python API and the run directory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from trp_onnx.errors import UsageError
from trp_onnx.files.documents import read_toml

Strategy = Literal["ranks", "replan", "energy", "paper"]
Schedule = Literal["cosine", "step", "constant"]
Distance = Literal["auto", "kl", "mse"]
_CHOICES = {"strategy": get_args(Strategy), "schedule": get_args(Schedule), "distill_kind": get_args(Distance)}


@dataclass(frozen=True)
class TrainingOptions:
    """Training with projection.

    Attributes:
        epochs: Passes over the training part, with projection; 0 to train the factors alone.
        batch: Samples of one step, over all workers.
        micro_batch: Samples of one forward pass, over which BatchNormalization takes its statistics; a
            step adds the gradients of `batch / micro_batch` of them up, wherever they run.
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
        output_weights: Weight of an output in the loss by its name, 1 where not given; may be repeated.
        augment: Any of "crop", "flip", "resized", "color".
        validation: Part of the data that is held out to choose the best checkpoint.
        finetune_epochs: Passes in which the factors are trained after factorisation.
        finetune_rate: Peak step size of the passes over the factors.
        workers: Processes on this machine; more than one needs trp-onnx[mpi].
        checkpoint_seconds: Longest time between two checkpoints.
        seed: Seeds the data's order and the augmentation.
    """

    epochs: int = 12
    batch: int = 128
    micro_batch: int = 64
    rate: float = 0.05
    schedule: Schedule = "cosine"
    warmup: int = 200
    milestones: tuple[float, ...] = (0.5, 0.75)
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    clip: float | None = None
    strategy: Strategy | None = None
    every: int = 20
    nuclear: float = 0.0
    nuclear_every_step: bool = False
    labels: float | None = None
    distill: float | None = None
    temperature: float = 4.0
    distill_kind: Distance = "auto"
    output_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    augment: tuple[str, ...] = ("crop", "flip")
    validation: float = 0.1
    finetune_epochs: int = 0
    finetune_rate: float = 0.005
    workers: int = 1
    checkpoint_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in self._numbers():
            if not (abs(value) < 2**63 and math.isfinite(value)):
                raise UsageError(f"training: {name} is infinite or too large for any training")
        for name in ("batch", "micro_batch", "every", "workers"):
            _require(getattr(self, name) >= 1, name, "is a whole number from 1", getattr(self, name))
        for name in ("epochs", "warmup", "finetune_epochs", "nuclear", "weight_decay", "seed"):
            _require(getattr(self, name) >= 0, name, "is not negative", getattr(self, name))
        for name in ("rate", "temperature", "finetune_rate"):
            _require(getattr(self, name) > 0, name, "is positive", getattr(self, name))
        for name in ("labels", "distill"):
            value = getattr(self, name)
            _require(value is None or value >= 0, name, "is not negative", value)
        _require(self.clip is None or self.clip > 0, "clip", "is positive", self.clip)
        _require(0 <= self.momentum < 1, "momentum", "is from 0 to below 1", self.momentum)
        _require(0 < self.validation < 1, "validation", "is a part of the data between 0 and 1", self.validation)
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            open_ = name == "strategy" and value is None
            _require(open_ or value in known, name, f"is one of {', '.join(known)}", value)
        for name in self.augment:
            _require(name in ("crop", "flip", "resized", "color"), "augment", "knows crop, flip, resized, color", name)
        if self.epochs + self.finetune_epochs == 0:
            raise UsageError("training: there are no epochs, neither before nor after factorisation")
        if self.labels == 0 and self.distill == 0:
            raise UsageError("training: give labels or distill a weight: there is nothing else to learn from")

    def _numbers(self) -> Iterator[tuple[str, int | float]]:
        for name, value in vars(self).items():
            many = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
            yield from ((name, number) for number in many if isinstance(number, (int, float)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the run directory."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingOptions:
        """The inverse of `to_dict`, after JSON or TOML.

        Raises:
            UsageError: An unknown name, or a value of the wrong kind.
        """
        known = sorted(field.name for field in dataclasses.fields(cls))
        for name in values:
            if name not in known:
                raise UsageError(f"training: unknown key '{name}'; there are {', '.join(known)}")
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            what, _, where = str(error).replace("`", "").replace("[...]", "").partition(" - at $.")
            said = what.replace("Expected", "takes").replace(", got", ", not")
            if where in _CHOICES:
                said = f"is one of {', '.join(_CHOICES[where])}, not {values[where]}"
            raise UsageError(f"training: {where} {said}") from error


def read_training(path: Path | None, **overrides: Any) -> TrainingOptions:
    """Options from a TOML file, with whatever is given (not None) in `overrides` on top.

    Raises:
        UsageError: The file cannot be read, or a key or a value is wrong.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_toml(path, "the training file", UsageError)
    return TrainingOptions.from_dict(values | {key: value for key, value in overrides.items() if value is not None})


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        raise UsageError(f"training: {name} {what}, not {value}")
