"""What a layer's error does to the network's outputs, measured on data: the planner's judge.

A layer's own error is blind to where the layer stands: the same 10 % may be lost in the noise or change every
answer. So each layer is perturbed alone, in the direction in which factorisation will move it,

    W(t) = W + t (W_r - W),    e(t) = t^2 e_r,    bias corrected for the mean,

and the network is run. That gives, at a few relative squared errors e,

    damage_l(e) = divergence of the outputs (see `divergence`)

linear in between and through (0, 0). Damages of several layers are added up, which is exact to first order
when their output errors are uncorrelated. A few dozen samples do; labels are not needed. Curves are kept in the
user's cache: a sweep that was stopped goes on where it was.

Before a perturbed layer nothing changes, so a run starts at the last cut before it (see `partial_run`). A layer is
linear in its weight, so beside it stands a second one with the direction as its weight, and t is an input: one session
tells all errors. Samples come in pieces: the first gives the shape of a curve, at all errors, the further ones its
height, at the middle one, until that is clear.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from trp_onnx.calibration.moments import Moments, mean_error
from trp_onnx.evaluation.divergence import SURE, Divergence
from trp_onnx.evaluation.origins import measurable
from trp_onnx.evaluation.outputs import Told, Value, joined, output_kinds
from trp_onnx.files.cache import Cache
from trp_onnx.graph.bias import corrects_bias
from trp_onnx.graph.inputs import Run, Samples
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.lent import take_out
from trp_onnx.graph.model import to_proto
from trp_onnx.graph.partial_run import Walk
from trp_onnx.graph.session import Arrays, open_session
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import Moment, candidates
from trp_onnx.lowrank.separable import Separable
from trp_onnx.planning.curve import DamageCurve
from trp_onnx.planning.options import Evidence, dense_option, sites_of
from trp_onnx.process.parallel import each
from trp_onnx.progress import note

ERRORS = (0.03, 0.15, 0.6)
"""Relative squared errors at which a layer is perturbed: what plans use lies around them."""

PIECE, LEAST, PIECE_BYTES = 16, 4, 1 << 20
"""Samples that are run at once, and how many at least where they have more than so many bytes together: large ones take
long, and each says more. Two pieces at least."""

CLEAR, VAGUE = 0.2, 0.5
"""A damage is clear when the standard error of its mean over the pieces is at most the first part of it; where a layer
has little of the network's MACs, at most the second, see `_clear`."""

_MIDDLE = 1
"""Which of `ERRORS` the further pieces are run at."""

_SLOPE = 0.01
"""Part of the last damage that a curve rises by at least: of errors that do as much damage the smallest is best."""

_AMOUNT = "trp_onnx/amount"
"""The input that says how far a layer is moved."""

_VERSION = 6
"""Changes with what the curves mean: older ones in a cache are measured again."""


def measure_damage(
    model: ir.Model,
    layers: Sequence[Layer],
    samples: Samples,
    scheme: str = "auto",
    evidence: Evidence | None = None,
    *,
    told: Told | None = None,
    progress: Callable[[Sequence[tuple[Layer, ...]]], Iterable[tuple[Layer, ...]]] = lambda groups: groups,
) -> dict[str, DamageCurve]:
    """Perturb every layer that can be factorised, one at a time.

    Args:
        model: Normalised; not changed.
        layers: Its layers.
        samples: As the model takes them.
        scheme: In whose direction the weights move; "auto" takes the first that fits.
        evidence: With the moments of what flows into the layers.
        told: What is known of the outputs, see `output_kinds`.
        progress: Wraps the list of weights.

    Raises:
        ModelError: The model does not run on the samples, or has no output that can be measured.

    Returns:
        The curves; none where no output moves whatever is done to the layers, which a note says.
    """
    evidence, told = evidence or Evidence(), told or Told()
    proto = to_proto(model, apart=True)
    cache = Cache("damage", _fingerprint(proto, samples, scheme, told))
    network: _Network | None = None
    curves: dict[str, DamageCurve] = {}
    groups = sites_of(layers)
    keys = {group[0].name: _key(group[0], evidence.moments) for group in groups}
    clear = _clear(groups)
    stored = {name: cache.get(key) for name, key in keys.items()}
    directions = each(
        lambda group: _direction(group, scheme, evidence), [group for group in groups if stored[group[0].name] is None]
    )
    for group in progress(groups):
        known = stored[group[0].name]
        if known is None:
            network = network or _Network(model, proto, samples, told)
            direction = next(directions)
            known = [
                [0.0, 0.0],
                *([] if direction is None else _curve(network, group, direction, clear[group[0].name])),
            ]
            cache.put(keys[group[0].name], known)
        if len(known) > 1:
            errors, damages = np.array(known).T
            rising = np.maximum.accumulate(damages)
            curves[group[0].name] = DamageCurve(errors, rising + _SLOPE * rising[-1] * errors)
    if curves and all(curve.damages[-1] <= 0 for curve in curves.values()):
        note("no output moves when the layers do: there is nothing to plan by but the weights")
        return {}
    return curves


def _key(layer: Layer, moments: Mapping[str, Moments]) -> str:
    """A layer, and the data that its direction is found on."""
    found = moments.get(layer.name)
    seen = "" if found is None else hashlib.sha256(np.ascontiguousarray(found.mean).data).hexdigest()
    return f"{layer.name} {seen}"


def _fingerprint(model: onnx.ModelProto, samples: Samples, scheme: str, told: Told) -> str:
    """All that the curves depend on."""
    described, weights = take_out(model)
    digest = hashlib.blake2b(described.SerializeToString(deterministic=True))
    for weight in weights.values():
        digest.update(weight.data)
    for run in samples.runs:
        for name, array in run.feeds.items():
            stored = array.astype(str) if array.dtype.hasobject else np.ascontiguousarray(array)
            digest.update(f"{name} {stored.dtype} {array.shape}".encode())
            digest.update(stored.tobytes())
    return (
        f"{_VERSION} {digest.hexdigest()} {scheme} {ERRORS} {PIECE} {LEAST} {PIECE_BYTES} {CLEAR} {VAGUE} {SURE} {told}"
    )


@dataclass(frozen=True)
class _Direction:
    """Where a weight moves: by so much of its energy, as it is stored, and what biases take up then, (N,), or None."""

    error: float
    weight: np.ndarray
    shift: Array | None


def _clear(groups: Sequence[tuple[Layer, ...]]) -> dict[str, float]:
    """What part of its damage a layer's standard error may be, by name.

    What a plan spends on a layer is about in proportion to its MACs, and samples in proportion to what each adds make a
    sum most certain (Neyman, "On the Two Different Aspects of the Representative Method", 1934).
    """
    macs = np.array([dense_option(group).macs for group in groups], np.float64)
    parts = CLEAR * np.sqrt(macs.mean() / np.maximum(macs, 1.0)) if groups else macs
    return {group[0].name: float(part) for group, part in zip(groups, np.clip(parts, CLEAR, VAGUE), strict=True)}


def _curve(network: _Network, group: tuple[Layer, ...], direction: _Direction, clear: float) -> list[list[float]]:
    """Pairs of an error and its damage, which is told within that part of it."""
    amounts = [float(np.sqrt(error / direction.error)) for error in ERRORS]
    first, *others = network.pieces
    damage = network.moved(group, direction)
    shape = [damage(amount, first) for amount in amounts]
    if shape[_MIDDLE] <= 0:  # an answer that few samples tip has no shape yet
        rows = [shape, *([damage(amount, piece) for amount in amounts] for piece in others)]
        return [[error, float(value)] for error, value in zip(ERRORS, np.mean(rows, axis=0), strict=True)]
    heights = [shape[_MIDDLE]]
    for piece in others:
        heights.append(damage(amounts[_MIDDLE], piece))
        if np.std(heights, ddof=1) <= clear * np.mean(heights) * np.sqrt(len(heights)):
            break
    height = float(np.mean(heights)) / shape[_MIDDLE]
    return [[error, height * value] for error, value in zip(ERRORS, shape, strict=True)]


def _direction(group: tuple[Layer, ...], scheme: str, evidence: Evidence) -> _Direction | None:
    owner = group[0]
    assert owner.geometry is not None and owner.layout is not None
    fitting = candidates(scheme, owner.geometry.kernel)
    if not fitting:
        return None
    weight, moment, moments = owner.weight(), evidence.moment(owner, exact=False), evidence.moments.get(owner.name)
    errors = evidence.errors(owner, fitting[:1])[fitting[0].name]
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
        return None  # the weight is of rank 1: nothing is lost at any rank
    step = fitting[0].merge(fitting[0].split_by(weight, rank, moment, exact=False)) - weight
    told = len(rank) == 1 or not isinstance(moment, np.ndarray)  # for Tucker-2 of outputs there is no exact figure
    reached = float(errors[rank]) if told else _relative(step, weight, moment)
    if reached <= 0:
        return None
    shift = mean_error(-step, moments) if moments is not None and corrects_bias(owner) else None
    return _Direction(reached, owner.layout.from_canonical(step), shift)


def _relative(step: Array, weight: Array, moment: Moment | None) -> float:
    """Relative squared error of a change: of the outputs where the moment is known, else of the weight."""
    matrix = None
    if isinstance(moment, Separable):
        step, weight = moment.whitened(step), moment.whitened(weight)
    else:
        matrix = moment

    def energy(w: Array) -> float:
        flat = w.reshape(*w.shape[:2], -1) / peak
        if matrix is None:
            return float(np.square(flat).sum())
        flat = flat.astype(matrix.dtype, copy=False)
        return float(((flat @ matrix) * flat).sum(dtype=np.float64))

    peak = float(np.abs(weight).max(initial=0.0)) or 1.0

    whole = energy(weight)
    return energy(step) / whole if whole > 0 else 0.0


class _Network:
    """A network that is run from the last cut before whatever was moved.

    Attributes:
        pieces: Of the samples, which are of equal shapes in each: places in the walk's runs.
    """

    def __init__(self, graph: ir.Model, model: onnx.ModelProto, samples: Samples, told: Told) -> None:
        self._graph, self._model, self._told = graph, model, told
        self._measured = measurable(graph)
        size = min(PIECE, max(LEAST, PIECE_BYTES // samples.bytes_each))
        self._walk = Walk(model, samples, self._measured, most=size)
        self.pieces = _pieces(self._walk.runs, size)
        self._divergences: dict[int, Divergence] = {}

    def moved(self, group: tuple[Layer, ...], direction: _Direction) -> Callable[[float, slice], float]:
        """What it does to the outputs to move layers by so much, on some samples."""
        names = [layer.node.outputs[0].name or "" for layer in group]
        first = next((name for node in self._model.graph.node for name in node.output if name in names), "")
        if not self._divergences:
            self._expect()
        self._walk.advance(self._model, first)
        rest = self._walk.rest(self._model, self._measured)
        _move(rest.graph, group, direction)
        session = open_session(rest)
        dtype = _dtype(group[0])

        def damage(amount: float, piece: slice) -> float:
            others = {_AMOUNT: np.asarray(amount, dtype)}
            return self._divergences[piece.start](self._outputs(session, piece, others))

        return damage

    def _expect(self) -> None:
        session = open_session(self._walk.rest(self._model, self._measured))
        kinds = None
        for piece in self.pieces:
            expected = self._outputs(session, piece)
            kinds = output_kinds(self._graph, expected, self._told) if kinds is None else kinds
            self._divergences[piece.start] = Divergence(expected, kinds)

    def _outputs(self, session: Any, piece: slice, others: Arrays | None = None) -> dict[str, Value]:
        found = list(self._walk.feed(session, self._measured, piece, others))
        return joined([values for values, _ in found], [count for _, count in found])


def _pieces(runs: Sequence[Run], size: int) -> list[slice]:
    """Neighbouring runs of equal shapes, until they have so many samples."""
    found, start = [], 0
    for place, run in enumerate(runs, start=1):
        shapes = [[array.shape for array in near.feeds.values()] for near in (run, *runs[place : place + 1])]
        whole = sum(each.count for each in runs[start:place]) >= size
        if whole or place == len(runs) or shapes[0] != shapes[1]:
            found.append(slice(start, place))
            start = place
    return found


def _dtype(layer: Layer) -> np.dtype[Any]:
    """Of a layer's weight."""
    stored = None if layer.constant is None else layer.constant.dtype
    return np.dtype(np.float32 if stored is None else stored.numpy())


def _move(graph: onnx.GraphProto, group: tuple[Layer, ...], direction: _Direction) -> None:
    """Put beside each layer one with the direction as its weight; as much of its outputs as the new input says."""
    dtype = _dtype(group[0])
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    graph.input.append(onnx.helper.make_tensor_value_info(_AMOUNT, kind, []))
    weight, bias = f"{_AMOUNT}/weight", f"{_AMOUNT}/bias"
    stored = {weight: direction.weight} | ({} if direction.shift is None else {bias: direction.shift})
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ascontiguousarray(array, dtype), name) for name, array in stored.items()
    )
    layers = {layer.node.outputs[0].name: layer for layer in group}

    def beside(node: onnx.NodeProto, index: int) -> list[onnx.NodeProto]:
        output = node.output[0]
        plain, step, part = (f"{output}/{_AMOUNT}/{name}" for name in ("plain", "step", "part"))
        second = onnx.NodeProto()
        second.CopyFrom(node)
        node.output[0], second.output[0], second.name = plain, step, step
        del second.input[2:]
        second.input[index] = weight
        if direction.shift is not None:
            second.input.append(bias)
        elif len(node.input) > 2 and node.op_type == "Gemm":  # it has none before opset 11 that can be left out
            second.input.append(node.input[2])
            kept = [attribute for attribute in second.attribute if attribute.name != "beta"]
            del second.attribute[:]
            second.attribute.extend([*kept, onnx.helper.make_attribute("beta", 0.0)])
        return [
            node,
            second,
            onnx.helper.make_node("Mul", [step, _AMOUNT], [part]),
            onnx.helper.make_node("Add", [plain, part], [output]),
        ]

    for inner in _graphs(graph):
        nodes: list[onnx.NodeProto] = []
        for node in inner.node:
            layer = layers.get(node.output[0] if node.output else "")
            assert layer is None or layer.layout is not None
            nodes += [node] if layer is None or layer.layout is None else beside(node, layer.layout.weight_index)
        if len(nodes) > len(inner.node):
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
            del inner.node[:]
            inner.node.extend(copies)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
