"""A training with projection, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

from trp_onnx.schema import conform, path_of

if TYPE_CHECKING:
    from trp_onnx.training.options import TrainingOptions


@dataclass(frozen=True)
class Training:
    """A training with projection, and where it is kept.

    Attributes:
        options: How to train.
        teacher: Another ONNX file whose outputs are the ones to learn; the model itself otherwise.
        run: Folder for checkpoints and curves, kept afterwards; `<out>.trp-run`, removed on success, otherwise.
        resume: Go on with the training that was interrupted there.

    Raises:
        UsageError: A value of another type.
    """

    options: TrainingOptions
    teacher: str | PathLike[str] | None = None
    run: str | PathLike[str] | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        conform(self, "resume")
        for name in ("teacher", "run"):
            if getattr(self, name) is not None:
                path_of(getattr(self, name), name)
