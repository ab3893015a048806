"""Everything that trp-onnx raises on purpose: one tree, each leaf one clear sentence and one exit code.

TrpOnnxError                 exit 1   the job cannot be done
├── ModelError                        the model cannot be read, run or factorised
├── DataError                         the data cannot be read or does not fit the model
├── OutputError                       the result cannot be written
├── RunnerError                       a runtime is not there, died or did not answer
├── TrainingError                     training diverged, a worker died, or a checkpoint does not fit
├── VerificationError                 the written file does not do what it must; it was not kept
├── UsageError               exit 2   the options or the configuration are wrong
└── TargetError              exit 3   the target is out of reach; nothing was written
"""


class TrpOnnxError(Exception):
    """Base of every error that a user can cause or mend; `str(error)` is one sentence."""

    exit_code = 1


class ModelError(TrpOnnxError):
    """The model cannot be read, cannot run, or holds nothing that can be factorised."""


class DataError(TrpOnnxError):
    """The data cannot be read or does not fit the model."""


class OutputError(TrpOnnxError):
    """The result cannot be written."""


class RunnerError(TrpOnnxError):
    """Another runtime is not there, cannot be reached, died or hung; none of its processes is left."""


class TrainingError(TrpOnnxError):
    """Training cannot start or go on; the last checkpoint is as good as it was."""


class VerificationError(TrpOnnxError):
    """The written file failed its check and was removed again."""


class UsageError(TrpOnnxError):
    """The options or the configuration file are wrong."""

    exit_code = 2


class TargetError(TrpOnnxError):
    """The target is out of reach; nothing was written."""

    exit_code = 3
