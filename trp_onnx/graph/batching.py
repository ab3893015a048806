"""How many samples a model takes at once: the one place that decides.

A batch size that the model declares is kept to, and the last batch filled up. Where the batch is dynamic, one sample
and two are run: if the two come out as each did alone, samples go in many at a time. Otherwise (a Reshape to [1, ...]
in the graph, outputs whose first axis is not the samples', statistics taken over the batch) they go in one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trp_onnx.errors import ModelError
from trp_onnx.graph.inputs import Inputs, Run, filled_run, joined_runs, part_of
from trp_onnx.graph.session import Arrays, run_session

_SAME = 0.05
"""Largest relative difference of a sample that ran alone and beside another: kernels and int8 steps, no mixture."""


@dataclass(frozen=True)
class Batching:
    """How samples are fed.

    Attributes:
        size: Samples of a run.
        fixed: Whether a run takes exactly so many.
        inputs: The model's, where their batch axes are not the first.
    """

    size: int
    fixed: bool = False
    inputs: Inputs = field(default_factory=dict, repr=False)

    def pieces(self, count: int) -> list[slice]:
        """Where each run's samples are among `count`; the last piece may be short."""
        return [slice(start, min(start + self.size, count)) for start in range(0, count, self.size)]

    def split(self, runs: Iterable[Run]) -> Iterator[Run]:
        """Runs of any size in such as the model takes; a short one is filled up where it must be."""
        for run in runs:
            for piece in self.pieces(run.count):
                part = part_of(self.inputs, run, piece)
                yield filled_run(self.inputs, part, self.size) if self.fixed else part


def find_batching(
    session: Any, run: Run, inputs: Inputs, *, most: int = 32, memory: int | None = None
) -> Batching:  # fmt: skip
    """Try a model out.

    Args:
        session: Of the model, with its own outputs.
        run: Some samples, one at least, of which two are looked at.
        inputs: The model's.
        most: Samples of a run at most, where the model leaves that open.
        memory: Bytes that the outputs of a run may take.

    Raises:
        ModelError: The model runs on no number of samples.
    """
    size = next((spec.fixed for spec in inputs.values() if spec.fixed), None)
    if size is not None:
        return Batching(size, True, inputs)
    first, second = (part_of(inputs, run, slice(at, at + 1)) for at in (0, run.count - 1))
    try:
        alone = run_session(session, first.feeds)
    except ModelError as error:
        return _size_of_outputs(session, inputs, run, error)
    try:
        pair = list(joined_runs(inputs, [first, second]))
        together = run_session(session, pair[0].feeds)
        mixed = len(pair) > 1 or not _follow(alone, run_session(session, second.feeds), together)
    except ModelError:
        mixed = True
    if mixed:
        return Batching(1, inputs=inputs)
    bytes_each = max(1, sum(np.asarray(value).nbytes for value in alone.values()))
    return Batching(max(1, most if memory is None else min(most, memory // bytes_each)), inputs=inputs)


def run_samples(session: Any, runs: Iterable[Run], batching: Batching) -> Arrays:
    """Outputs of all samples, one behind the other, whatever the number that goes in at once.

    Args:
        session: Of the model.
        runs: Of the samples, of any size.
        batching: As `find_batching` found it.

    Raises:
        ModelError: It does not run.
    """
    found: dict[str, list[Any]] = {}
    for run in batching.split(runs):
        for name, value in run.counted(run_session(session, run.feeds)).items():
            found.setdefault(name, []).append(value)
    return {name: _joined(values) for name, values in found.items()}


def _is_size(declared: object) -> bool:
    return isinstance(declared, int) and declared > 0


def _size_of_outputs(session: Any, inputs: Inputs, run: Run, error: ModelError) -> Batching:
    """A graph made for one batch size under inputs that say nothing of it: the outputs may."""
    for size in sorted({value.shape[0] for value in session.get_outputs() if value.shape and _is_size(value.shape[0])}):
        batching = Batching(size, True, inputs)
        try:
            run_session(session, next(batching.split([run])).feeds)
        except ModelError:
            continue
        return batching
    raise error


def _follow(one: Arrays, other: Arrays, together: Arrays) -> bool:
    """Whether what two samples give together is what each gave alone."""
    if not one.keys() == other.keys() == together.keys():  # a sequence of one element a sample
        return False
    for name, value in together.items():
        parts = (one[name], other[name])
        if not all(isinstance(part, np.ndarray) and part.ndim for part in (*parts, value)):
            return False
        if parts[0].shape[1:] != parts[1].shape[1:]:
            return False
        expected = np.concatenate(parts)
        if expected.shape != value.shape or (value.dtype.kind == "f" and not _close(expected, value)):
            return False
    return True


def _close(expected: np.ndarray, actual: np.ndarray) -> bool:
    a, b = (np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0) for x in (expected, actual))
    return bool(np.linalg.norm(a - b) <= _SAME * np.linalg.norm(a))


def _joined(values: list[Any]) -> Any:
    """One array where the pieces fit together; a list where they are lists, or their sizes depend on the values."""
    if all(isinstance(value, list) for value in values):
        return [entry for value in values for entry in value]
    arrays = [np.atleast_1d(value) for value in values]
    return np.concatenate(arrays) if len({array.shape[1:] for array in arrays}) == 1 else values
