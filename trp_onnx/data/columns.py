"""Arrays of many samples, an array for each input, and which axis of them counts samples.

An array of an input's rank holds samples along its batch axis. One of a rank more holds what a model is fed, one behind
the other, batch included. One that is given once, or for an input without a batch axis, is the same for all samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import DataError
from trp_onnx.graph.inputs import Inputs, Run, describe
from trp_onnx.graph.session import Arrays

X, LABELS = "x", ("y", "labels")
"""What samples are called for a model with one input; labels, the second where an input has the name of the first."""


@dataclass(frozen=True)
class Columns:
    """Samples of equal shapes.

    Attributes:
        arrays: Of each input the samples, first axis first, and where the batch axis stands in what the model takes:
            None for an input that has none.
        shared: What all samples have in common.
        count: How many there are.
    """

    arrays: Mapping[str, tuple[np.ndarray, int | None]]
    shared: Arrays
    count: int

    def take(self, indices: np.ndarray) -> Iterator[Run]:
        """Chosen samples, (b,): one run, or one a sample where an input has no batch axis to join them along."""
        alone = any(axis is None for _, axis in self.arrays.values())
        for chosen in [indices[i : i + 1] for i in range(len(indices))] if alone else [indices]:
            feeds = {name: _fed(array[chosen], axis) for name, (array, axis) in self.arrays.items()}
            yield Run(feeds | self.shared, len(chosen))


def _fed(samples: np.ndarray, axis: int | None) -> np.ndarray:
    return np.asarray(samples[0]) if axis is None else np.moveaxis(samples, 0, axis)


def named(inputs: Inputs, names: Iterable[str], source: str) -> dict[str, str]:
    """Which array each input takes, by the input's name; of a model that is not known all, or `x` where there is one.

    Raises:
        DataError: An input has none.
    """
    there = [name for name in names if name not in LABELS or name in inputs]
    if not inputs:
        return {X: X} if X in there else {name: name for name in there}
    missing = [name for name in inputs if name not in there]
    if len(inputs) == 1 and missing and X in there:
        return {missing[0]: X}
    if missing:
        hint = f" (or '{X}')" if len(inputs) == 1 and X not in inputs else ""
        raise DataError(f"'{source}' has no array for input '{missing[0]}'{hint}: {describe(inputs)}")
    return {name: name for name in inputs}


def columns_of(inputs: Inputs, arrays: Arrays, source: str, *, single: bool = False) -> Columns:
    """Find the samples in arrays.

    Args:
        inputs: The model's; empty where it is not known, then the first axis counts.
        arrays: By input.
        source: For messages.
        single: Whether an array without the batch axis is one sample.

    Raises:
        DataError: An array has another rank than its input takes, or the arrays hold different numbers of samples.
    """
    found: dict[str, tuple[np.ndarray, int | None]] = {}
    shared: Arrays = {}
    for name, array in arrays.items():
        column = _column(inputs, name, array, source, single)
        if column is None:
            shared[name] = array
        else:
            found[name] = column
    counts = {name: len(array) for name, (array, _) in found.items()}
    if not inputs and single:
        return Columns({name: (array[None], 0) for name, array in arrays.items()}, {}, 1)
    count = max(counts.values(), default=1)
    if min(counts.values(), default=1) == 0:
        raise DataError(f"'{source}' holds no samples")
    other = next((name for name in counts if counts[name] not in (1, count)), None)
    if other is not None and inputs:
        first = next(name for name in counts if counts[name] == count)
        raise DataError(f"'{source}' gives {count} samples at '{first}' and {counts[other]} at '{other}'")
    spread = {
        name: (np.broadcast_to(array, (count, *array.shape[1:])) if len(array) == 1 else array, axis)
        for name, (array, axis) in found.items()
    }
    return Columns(spread, shared, count)


def _column(
    inputs: Inputs, name: str, array: np.ndarray, source: str, single: bool
) -> tuple[np.ndarray, int | None] | None:
    """One array with the samples first, and the batch axis of its input; None for what is the same for all."""
    spec = inputs.get(name)
    takes_text = spec is None or spec.dtype == ir.DataType.STRING
    if array.dtype.kind not in ("uifbUS" if takes_text else "uifb"):
        raise DataError(f"'{source}': '{name}' has type {array.dtype}, numbers are needed")
    if spec is None or spec.sizes is None:
        return (array, 0) if array.ndim else None
    rank, axis = len(spec.sizes), spec.axis
    if array.ndim == rank:
        return None if axis is None else (np.moveaxis(array, axis, 0), axis)
    if array.ndim == rank + 1 and axis is None:
        return array, None
    if array.ndim == rank + 1 and axis is not None and array.shape[1 + axis] in (1, spec.fixed):
        feeds = np.moveaxis(array, 1 + axis, 1)
        return feeds.reshape(-1, *feeds.shape[2:]), axis
    if single and array.ndim == rank - 1 and axis is not None:
        return array[None], axis
    if not array.ndim:
        raise DataError(f"'{source}' holds no samples: '{name}' is a single number")
    raise misfit(inputs, name, array.shape, source)


def misfit(inputs: Inputs, name: str, shape: tuple[int, ...], source: str) -> DataError:
    """An array that its input does not take."""
    have = ",".join(map(str, shape))
    images = "; for images see --crop, --resize and --layout" if len(inputs[name].sizes or ()) == 4 else ""
    return DataError(f"'{source}' gives '{name}' the shape ({have}), but {describe(inputs)}{images}")
