"""What a layer's error does to the network's outputs, measured on data: the planner's judge.

A layer's own error is blind to where the layer stands: the same 10 % may be lost in the noise or change every
answer. So each layer is perturbed alone, in the direction in which factorisation will move it,

    W(t) = W + t (W_r - W),    e(t) = t^2 e_r,    bias corrected for the mean,

and the network is run. That gives, at a few relative squared errors e,

    damage_l(e) = divergence of the outputs (see `divergence`)

linear in between and through (0, 0). Damages of several layers are added up, which is exact to first order
when their output errors are uncorrelated. A few dozen samples do; labels are not needed. Curves are kept in the
user's cache: a sweep that was stopped goes on where it was.

Before a perturbed layer nothing changes, so a run starts at the last gate before it (see `segments`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from trp_onnx.cache import Cache
from trp_onnx.divergence import SURE, Divergence
from trp_onnx.layers import Layer
from trp_onnx.linalg import Array
from trp_onnx.model import to_proto
from trp_onnx.moments import Moments
from trp_onnx.outputs import Value, joined, measurable, output_kinds
from trp_onnx.passes.factorise import bias_of, corrects_bias, mean_error
from trp_onnx.planning.curve import DamageCurve
from trp_onnx.planning.options import Evidence, sites_of
from trp_onnx.schemes import candidates
from trp_onnx.segments import Walk

ERRORS = (0.03, 0.15, 0.6)
"""Relative squared errors at which a layer is perturbed: what plans use lies around them."""

_VERSION = 2
"""Changes with what the curves mean: older ones in a cache are measured again."""


def measure_damage(
    model: ir.Model,
    layers: Sequence[Layer],
    x: np.ndarray,
    scheme: str = "auto",
    moments: Mapping[str, Moments] | None = None,
    *,
    classes: int = 0,
    progress: Callable[[Sequence[tuple[Layer, ...]]], Iterable[tuple[Layer, ...]]] = lambda groups: groups,
) -> dict[str, DamageCurve]:
    """Perturb every layer that can be factorised, one at a time.

    Args:
        model: Normalised, with one input; not changed.
        layers: Its layers.
        x: (b, ...) samples, as the model takes them.
        scheme: In whose direction the weights move; "auto" takes the first that fits.
        moments: Of what flows into the layers, see `Evidence`.
        classes: How many the labels of the data name, see `output_kinds`.
        progress: Wraps the list of weights.

    Raises:
        ModelError: The model does not run on the samples, or has no output that can be measured.
    """
    evidence = Evidence(moments or {})
    proto = to_proto(model)
    cache = Cache("damage", _fingerprint(proto, x, scheme, moments, classes))
    network = _Network(model, proto, x, classes)
    curves: dict[str, DamageCurve] = {}
    for group in progress(sites_of(layers)):
        known = cache.get(group[0].name)
        if known is None:
            known = [[0.0, 0.0]]
            known += [
                [error, network.damage(group, changes)] for error, changes in _perturbations(group, scheme, evidence)
            ]
            cache.put(group[0].name, known)
        if len(known) > 1:
            errors, damages = np.array(known).T
            curves[group[0].name] = DamageCurve(errors, np.maximum.accumulate(damages))
    return curves


def _fingerprint(
    model: onnx.ModelProto, x: np.ndarray, scheme: str, moments: Mapping[str, Moments] | None, classes: int
) -> str:  # fmt: skip
    """All that a curve depends on."""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    digest.update(np.ascontiguousarray(x).data)
    for found in (moments or {}).values():
        digest.update(np.ascontiguousarray(found.mean).data)
    return f"{_VERSION} {digest.hexdigest()} {scheme} {ERRORS} {SURE} {classes}"


@dataclass(frozen=True)
class _Changes:
    """New weight for a group of layers, as it is stored, and what their biases take up, (N,), or None."""

    weight: np.ndarray
    shift: Array | None


def _perturbations(group: tuple[Layer, ...], scheme: str, evidence: Evidence) -> Iterator[tuple[float, _Changes]]:
    owner = group[0]
    assert owner.geometry is not None and owner.layout is not None
    fitting = candidates(scheme, owner.geometry.kernel)
    if not fitting:
        return
    weight, moment, moments = owner.weight(), evidence.moment(owner), evidence.moments.get(owner.name)
    errors = fitting[0].errors(weight, moment)
    full = tuple(size - 1 for size in errors.shape)
    # The smallest rank that loses no more than the middle one of the errors to be tried.
    rank = full
    for part in np.linspace(1, 0, 65)[1:]:
        smaller = tuple(max(1, round(part * size)) for size in full)
        if errors[smaller] > ERRORS[1]:
            break
        rank = smaller
    if errors[rank] <= 0:
        rank = (1,) * len(full)
    if errors[rank] <= 0:
        return  # the weight is of rank 1: nothing is lost at any rank
    step = fitting[0].merge(fitting[0].split(weight, rank, moment)) - weight
    reached = _relative(step, weight, moment)
    if reached <= 0:
        return
    for error in ERRORS:
        change = step * np.sqrt(error / reached)
        shift = None
        if moments is not None and corrects_bias(owner):
            shift = mean_error(-change, moments)
        yield error, _Changes(owner.layout.from_canonical(weight + change), shift)


def _relative(step: Array, weight: Array, moment: Array | None) -> float:
    """Relative squared error of a change: of the outputs where the moment is known, else of the weight."""

    def energy(w: Array) -> float:
        flat = w.reshape(*w.shape[:2], -1)
        return float(np.square(flat).sum() if moment is None else ((flat @ moment) * flat).sum())

    whole = energy(weight)
    return energy(step) / whole if whole > 0 else 0.0


class _Network:
    """A network that is run from the last gate before whatever was changed."""

    def __init__(self, graph: ir.Model, model: onnx.ModelProto, x: np.ndarray, classes: int) -> None:
        self._graph, self._model, self._classes = graph, model, classes
        self._measured = measurable(graph)
        self._walk = Walk(model, x, self._measured)
        self._divergence: Divergence | None = None

    def damage(self, group: tuple[Layer, ...], changes: _Changes) -> float:
        """What it does to the outputs."""
        if self._divergence is None:
            expected = self._outputs(self._model)
            self._divergence = Divergence(expected, output_kinds(self._graph, expected, self._classes))
        names = [layer.node.outputs[0].name or "" for layer in group]
        first = next((name for node in self._model.graph.node for name in node.output if name in names), "")
        self._walk.advance(self._model, first)
        changed = onnx.ModelProto()
        changed.CopyFrom(self._model)
        owner = group[0]
        assert owner.constant is not None
        dtype = np.dtype(np.float32) if owner.constant.dtype is None else owner.constant.dtype.numpy()
        _replace(changed, owner.constant.value.name or "", changes.weight.astype(dtype))
        if changes.shift is not None:
            for layer in group:
                _shift(changed, layer, changes.shift)
        return self._divergence(self._outputs(changed))

    def _outputs(self, model: onnx.ModelProto) -> dict[str, Value]:
        return joined(self._walk.run(model, self._measured))


def _replace(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    """Make a value, initializer or computed, this array."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
            return
    for node in model.graph.node:
        if name in node.output:
            node.output[list(node.output).index(name)] = f"{name}/replaced"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))


def _shift(model: onnx.ModelProto, layer: Layer, shift: Array) -> None:
    """Add to the bias of one layer."""
    bias = bias_of(layer)
    name = f"{layer.node.outputs[0].name}/bias/shifted"
    array = shift if bias is None else bias.array().astype(np.float64).reshape(-1) + shift
    dtype = np.float32 if layer.constant is None or layer.constant.dtype is None else layer.constant.dtype.numpy()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, dtype), name))
    for node in model.graph.node:
        if layer.node.outputs[0].name in node.output:
            inputs = [*node.input[:2], name]
            del node.input[:]
            node.input.extend(inputs)
