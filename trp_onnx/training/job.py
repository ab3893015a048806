"""The run directory: everything a worker needs, and everything it leaves.

job.json            what to do: this module
model.onnx          the network with its weights, ready for the training runtime
teacher.onnx        what its outputs are held to, where something is
metrics.jsonl       a line an epoch, and one every few seconds between
checkpoint.npz      see `checkpoint`
result.npz          the trained weights
worker.log          what the runtime had to say
data.npz            samples that were given in memory
finetune/, trial-*/ the same again, for the factors, and for the step sizes that are tried
plan.toml           what is recovered, see `recovery`
request.txt         what was asked for then
.trp-onnx-run       that the folder is ours
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trp_onnx.evaluation.outputs import Output
from trp_onnx.schema import plain
from trp_onnx.training.batches import DataSource
from trp_onnx.training.losses import OutputLoss
from trp_onnx.training.options import TrainingOptions
from trp_onnx.training.projection import Projection

END = "end"
"""What tells a worker to end."""

AGAIN = "the same command goes on from there (--train with --resume)"
"""What to do with a run that was interrupted."""

MODEL, TEACHER, JOB = "model.onnx", "teacher.onnx", "job.json"
METRICS, CHECKPOINT, RESULT, LOG = "metrics.jsonl", "checkpoint.npz", "result.npz", "worker.log"
DATA, FINETUNE, MARKER = "data.npz", "finetune", ".trp-onnx-run"
TRIALS, PLAN, REQUEST = ("trial-1", "trial-2", "trial-3"), "plan.toml", "request.txt"
STAGES = (FINETUNE, *TRIALS)

_STAGE = (JOB, MODEL, TEACHER, METRICS, CHECKPOINT, RESULT)
RUN_FILES = (*_STAGE, LOG, DATA, PLAN, REQUEST, *(f"{stage}/{name}" for stage in STAGES for name in _STAGE), MARKER)
"""All that a run directory may hold of ours."""

# What may differ between a run and its resumption: it changes no number but in the order of its sums.
_FREE = ("workers", "checkpoint_seconds")


@dataclass(frozen=True)
class ChosenBy:
    """What the best epoch is chosen by, where that is a metric.

    Attributes:
        metric: Its name, or "pkg.module:function", which every worker imports.
        outputs: What each output is.
        samples: Held-out samples.
        data: What they are called in messages.
    """

    metric: str
    outputs: dict[str, Output]
    samples: int
    data: str


@dataclass(frozen=True)
class Job:
    """A training run, in JSON values and names of the model's tensors.

    Attributes:
        options: How.
        outputs: What each output is held to.
        parameters: Initializers that are trained.
        no_decay: Those of them without weight decay.
        statistics: Running means and variances.
        projection: What is projected.
        data: Where the samples come from.
        teacher: Whether teacher.onnx is there.
        chosen_by: The metric that chooses the best epoch; accuracy or the distance to the teacher where not given.
        keeps_start: Whether the weights that it starts from are kept where no epoch is better; it ends then where it
            would diverge.
    """

    options: TrainingOptions
    outputs: tuple[OutputLoss, ...]
    parameters: tuple[str, ...]
    no_decay: tuple[str, ...]
    statistics: tuple[str, ...]
    projection: Projection
    data: DataSource
    teacher: bool
    chosen_by: ChosenBy | None = None
    keeps_start: bool = False

    def to_json(self) -> str:
        """As it stands in job.json."""
        return json.dumps(plain(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The inverse."""
        return msgspec.json.decode(text, type=cls)

    def digest(self, model: bytes, teacher: bytes) -> str:
        """Hash of all that the trained weights follow from."""
        document = plain(self)
        for name in _FREE:
            del document["options"][name]
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
        digest.update(model)
        digest.update(teacher)
        return digest.hexdigest()


@dataclass(frozen=True)
class Files:
    """A job with the contents of its files, as it goes to every worker."""

    job: str
    model: bytes
    teacher: bytes

    @classmethod
    def read(cls, run: Path) -> Files:
        """From a run directory."""
        teacher = run / TEACHER
        return cls(
            (run / JOB).read_text(encoding="utf-8"),
            (run / MODEL).read_bytes(),
            teacher.read_bytes() if teacher.exists() else b"",
        )
