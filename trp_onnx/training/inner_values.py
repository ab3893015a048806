"""Values inside a compressed network that shall be what they are in the original."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.inputs import Run
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import to_proto
from trp_onnx.graph.session import Arrays, open_session, run_session
from trp_onnx.training.trainable import showing


def inner_values(model: ir.Model, original: ir.Model, run: Run) -> list[str]:
    """Names of what the original's layers give, where the network gives something of the same shape for it.

    Channels that were removed leave another shape, and what lies between the factors of a layer has no such name.

    Args:
        model: The network.
        original: Normalised.
        run: A few samples.

    Raises:
        ModelError: One of them does not run.
    """
    given = {value.name for node in model.graph for value in node.outputs} - {out.name for out in model.graph.outputs}
    layers = [layer.node.outputs[0].name or "" for layer in find_layers(original) if not layer.place]
    shared = [name for name in layers if name in given]
    before, after = (_values(one, shared, run) for one in (original, model))
    return [name for name in shared if _comparable(before[name], after[name], run.count)]


def _values(model: ir.Model, names: list[str], run: Run) -> Arrays:
    session = open_session(to_proto(showing(model, names)))
    feeds = run.feeds
    inputs = [value.name for value in session.get_inputs()]
    return run_session(session, dict(zip(inputs, feeds.values(), strict=True)) if len(inputs) == 1 else feeds)


def _comparable(before: np.ndarray, after: np.ndarray, count: int) -> bool:
    """Whether both are floats of one shape with an axis of samples, and say anything."""
    return (
        before.shape == after.shape and before.dtype == np.float32 and count in before.shape and float(before.var()) > 0
    )  # fmt: skip
