"""Running statistics of the BatchNormalizations that could not be folded, as the compressed network has them.

Behind factorised layers a BatchNormalization sees other means and variances than those it was trained with. So
they are taken on samples in both networks, in running order, and the stored ones are moved by what has changed:

    var' = q var,    mean' = E[x'] - sqrt(q) (E[x] - mean),    q = Var[x'] / Var[x]

(x in the original network, x' in the compressed one), so that what comes out has the mean and the variance that it
had. Where nothing has changed that is the identity, however few the samples; statistics of the samples alone
would not be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.model import to_proto
from trp_onnx.graph.partial_run import Walk
from trp_onnx.lowrank.linalg import Array

_UNCHANGED = 1e-6
"""Relative changes below this are float32's rounding."""


def unfolded(model: ir.Model) -> list[ir.Node]:
    """BatchNormalizations of the main graph with constant statistics, in running order."""
    return [
        node
        for node in model.graph
        if node.op_type == "BatchNormalization"
        and node.domain in ("", "ai.onnx")
        and not node.attributes.get_int("training_mode", 0)
        and all(value is not None and value.const_value is not None for value in node.inputs[3:5])
    ]


def reestimate_statistics(
    model: ir.Model,
    original: onnx.ModelProto,
    samples: Samples,
    *,
    progress: Callable[[Sequence[ir.Node]], Iterable[ir.Node]] = lambda nodes: nodes,
) -> int:
    """Move the statistics of a compressed network, in place.

    Args:
        model: Compressed; values between its layers have the names that they have in the original.
        original: Normalised, as it was before.
        samples: As both take them.
        progress: Wraps the list of BatchNormalizations.

    Returns:
        How many have changed.

    Raises:
        ModelError: A network does not run on the samples.
    """
    before, after = Walk(original, samples), Walk(to_proto(model, apart=True), samples)
    changed = 0
    for node in progress(unfolded(model)):
        flow, output = node.inputs[0], node.outputs[0].name or ""
        assert flow is not None and flow.name is not None
        now = to_proto(model, apart=True)
        before.advance(original, output)
        after.advance(now, output)
        mean, variance = _statistics(before, original, flow.name)
        new_mean, new_variance = _statistics(after, now, flow.name)
        moved = np.abs(new_mean - mean).max() > _UNCHANGED * np.sqrt(variance.max())
        if not moved and np.allclose(variance, new_variance, rtol=_UNCHANGED, atol=0):
            continue
        tiny = np.finfo(np.float64).tiny
        scale = np.where(variance > tiny, new_variance / np.maximum(variance, tiny), 1.0)
        _replace(model, node, 3, new_mean - np.sqrt(scale) * (mean - _stored(node, 3)))
        _replace(model, node, 4, _stored(node, 4) * scale)
        changed += 1
    return changed


def _statistics(walk: Walk, model: onnx.ModelProto, name: str) -> tuple[Array, Array]:
    """Mean and variance of each channel of a value: (C,) each."""
    count, first, second = 0, np.zeros(()), np.zeros(())
    shift: Array | None = None
    for run, values in walk.run(model, [name]):
        rows = np.moveaxis(run.counted(values)[name], 1, -1).astype(np.float64)
        rows = rows.reshape(-1, rows.shape[-1])
        shift = rows.mean(axis=0) if shift is None else shift
        count, first = count + len(rows), first + (rows - shift).sum(axis=0)
        second = second + np.square(rows - shift).sum(axis=0)
    assert shift is not None
    mean = first / count
    return shift + mean, np.maximum(second / count - np.square(mean), 0.0)


def _stored(node: ir.Node, index: int) -> Array:
    value = node.inputs[index]
    assert value is not None and value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float64)


def _replace(model: ir.Model, node: ir.Node, index: int, array: Array) -> None:
    """Give a node another array for one of its constants: others may read the old one."""
    old = node.inputs[index]
    assert old is not None and old.const_value is not None
    name = f"{node.outputs[0].name}/{'mean' if index == 3 else 'var'}"
    tensor = ir.tensor(array.astype(old.const_value.dtype.numpy()), name=name)
    node.replace_input_with(index, ir.tape.Tape(model.graph).initializer(tensor))
