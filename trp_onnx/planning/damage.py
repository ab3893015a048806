"""What a layer's error does to the network's outputs, measured on data: the planner's judge.

Relative weight error is blind to where a layer stands. So each layer is perturbed alone, put on a few of the
ranks it might get, and the network is run:

    damage_l(e) = mean_b KL(softmax(z_b) || softmax(z'_b))      for outputs of one score a class
                  mean((y - y')^2) / mean(y^2)                  for any other

as a function of the relative squared weight error e of that rank, linear between the measured points and
through (0, 0). Damages of several layers are added up, which is exact to first order when their output errors
are uncorrelated. A few runs a layer on a few hundred samples; labels are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from trp_onnx import linalg
from trp_onnx.layers import Layer
from trp_onnx.model import to_proto
from trp_onnx.planning.curve import DamageCurve
from trp_onnx.planning.options import sites_of
from trp_onnx.runtime import Arrays, open_session, run_session
from trp_onnx.schemes import candidates

PARTS = (0.0, 0.06, 0.12, 0.25, 0.5, 0.75)
"""Ranks at which a layer is perturbed, as parts of the largest one that pays."""

BATCH = 32


def measure_damage(
    model: ir.Model,
    layers: Sequence[Layer],
    x: np.ndarray,
    scheme: str = "auto",
    *,
    progress: Callable[[Sequence[tuple[Layer, ...]]], Iterable[tuple[Layer, ...]]] = lambda groups: groups,
) -> dict[object, DamageCurve]:
    """Perturb every layer that can be factorised, one at a time.

    Args:
        model: Normalised, with one input; not changed.
        layers: Its layers.
        x: (b, ...) samples, as the model takes them.
        scheme: Under which the perturbed weights are of low rank; "auto" takes the first that fits.
        progress: Wraps the list of weights.

    Raises:
        ModelError: The model does not run on the samples.
    """
    proto = to_proto(model)
    expected = _run(proto, x)
    curves: dict[object, DamageCurve] = {}
    for group in progress(sites_of(layers)):
        owner = group[0]
        assert owner.geometry is not None and owner.constant is not None and owner.layout is not None
        fitting = candidates(scheme, owner.geometry.kernel)
        if not fitting:
            continue
        chosen, weight = fitting[0], owner.weight()
        parts = linalg.decompose(chosen.unfold(weight)[0])
        tail = linalg.relative_tail(parts.values)
        largest = len(tail) - 1
        while (
            largest > 1
            and len(chosen.full_rank(owner.geometry)) == 1
            and (chosen.macs(owner.geometry, (largest,)) >= owner.geometry.macs)
        ):
            largest -= 1
        points = {0.0: 0.0}
        for rank in sorted({max(1, round(part * largest)) for part in PARTS}, reverse=True):
            near = owner.layout.from_canonical(chosen.fold(parts.truncate(rank), weight.shape))
            changed = _with_weight(proto, owner.constant.value.name or "", near)
            points[float(tail[rank])] = _damage(expected, _run(changed, x))
        errors = sorted(points)
        damages = np.maximum.accumulate([points[error] for error in errors])
        curves[owner.key] = DamageCurve(np.array(errors), damages)
    return curves


def _with_weight(model: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.ModelProto:
    """A copy in which a value, initializer or computed, is this array."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == name:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array, dtype), name))
            return changed
    for node in changed.graph.node:
        if name in node.output:
            node.output[list(node.output).index(name)] = f"{name}/replaced"
    changed.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
    return changed


def _run(model: onnx.ModelProto, x: np.ndarray) -> Arrays:
    """Outputs for all samples, batch by batch; a fixed batch size is kept to."""
    session = open_session(model)
    first = session.get_inputs()[0]
    size = first.shape[0] if first.shape and isinstance(first.shape[0], int) else BATCH
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(x) - size + 1, size) if len(x) >= size else ():
        for name, value in run_session(session, {first.name: x[start : start + size]}).items():
            found.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in found.items()}


def _damage(expected: Arrays, actual: Arrays) -> float:
    total = 0.0
    for name, before in expected.items():
        after = actual[name]
        if before.dtype.kind != "f":
            continue
        scores = before.reshape(len(before), -1)
        if before.ndim > 1 and scores.shape[1] == max(before.shape[1:]) > 1:
            p, q = _log_softmax(scores), _log_softmax(after.reshape(len(after), -1))
            total += float((np.exp(p) * (p - q)).sum(axis=1).mean())
        else:
            total += float(np.mean(np.square(before - after)) / max(float(np.mean(np.square(before))), 1e-30))
    return total


def _log_softmax(z: np.ndarray) -> NDArray[np.float64]:
    shifted = z.astype(np.float64) - z.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
