"""What `--inputs` gives: feeds that a model runs on as they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trp_onnx.data.opening import Data, open_data
from trp_onnx.data.stores import ArrayStore
from trp_onnx.errors import DataError
from trp_onnx.graph.inputs import describe, filled_run, inputs_of
from trp_onnx.graph.session import Arrays

MOST = 16
"""Samples of a run, where they are given one by one."""


def read_inputs(model: ir.Model, data: Data) -> Arrays:
    """One run on given samples: all that arrays hold, the first ones of equal sizes where they come one by one.

    Args:
        model: What runs on them.
        data: Whatever `open_data` takes; they go in as they are, no preprocessing.

    Raises:
        DataError: The data cannot be read, or an array is missing, not known, empty, not finite, or of another shape or
            type than its input.
    """
    inputs, opened = inputs_of(model), open_data(data)
    dataset = opened.bound(inputs)
    if isinstance(opened.store, ArrayStore):
        for name in opened.store.arrays:
            if name not in inputs and name != "y" and not (len(inputs) == 1 and name == "x"):
                raise DataError(f"'{opened.source}' has an array '{name}', but {describe(inputs)}")
    count = len(dataset) if isinstance(dataset.store, ArrayStore) else min(MOST, len(dataset))
    first = dataset.take(np.arange(count))[0]
    size = next((spec.fixed for spec in inputs.values() if spec.fixed), 0)
    return filled_run(inputs, first, size).feeds
