"""What a layer's error does to the network's outputs, measured on data: the planner's judge.

A layer's own error is blind to where the layer stands: the same 10 % may be lost in the noise or change every
answer. So each layer is perturbed alone, in the direction in which factorisation will move it,

    W(t) = W + t (W_r - W),    e(t) = t^2 e_r,    bias corrected for the mean,

and the network is run. That gives, at a few relative squared errors e,

    damage_l(e) = divergence of the outputs (see `divergence`)

linear in between and through (0, 0). A space of channels is cut to a few widths instead, in all layers that read it:
each width has its own units and its own refit, so there is no one direction. Damages of several layers or spaces are
added up, which is exact to first order when their output errors are uncorrelated. A few dozen samples do; labels are
not needed. Curves are kept in the user's cache: a sweep that was stopped goes on where it was.

Samples come in pieces: the first gives the shape of a curve, at all errors, the further ones its height, at the middle
one, until that is clear.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from trp_onnx.calibration.moments import Moments, mean_error
from trp_onnx.evaluation.divergence import SURE
from trp_onnx.evaluation.outputs import Told
from trp_onnx.files.cache import Cache
from trp_onnx.graph.bias import corrects_bias
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.lent import take_out
from trp_onnx.graph.model import to_proto
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import Moment, candidates
from trp_onnx.lowrank.separable import Separable
from trp_onnx.planning.curve import DamageCurve
from trp_onnx.planning.moved import LEAST, PIECE, PIECE_BYTES, Move, MovedNetwork, Point
from trp_onnx.planning.options import Evidence, dense_option, sites_of
from trp_onnx.process.parallel import each
from trp_onnx.progress import note

ERRORS = (0.03, 0.15, 0.6)
"""Relative squared errors at which a layer is perturbed: what plans use lies around them."""

CLEAR, VAGUE = 0.2, 0.5
"""A damage is clear when the standard error of its mean over the pieces is at most the first part of it; where a layer
has little of the network's MACs, at most the second, see `_clear`."""

_SLOPE = 0.01
"""Part of the last damage that a curve rises by at least: of errors that do as much damage the smallest is best."""

_VERSION = 7
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
    evidence = evidence or Evidence()
    survey = _Survey(model, samples, told or Told(), scheme)
    groups = sites_of(layers)
    keys = {group[0].name: _key(group[0], evidence.moments) for group in groups}
    clear = _clear({group[0].name: dense_option(group).macs for group in groups})
    missing = [group for group in groups if keys[group[0].name] not in survey]
    directions = each(lambda group: _direction(group, scheme, evidence), missing)
    for group in progress(groups):
        if group in missing:
            name = group[0].name
            survey.measure(keys[name], next(directions), clear[name])
    return survey.curves(keys)


@dataclass(frozen=True)
class Level:
    """A space cut to some width.

    Attributes:
        error: Relative squared error of what its readers compute then.
        moves: What cutting does to them.
    """

    error: float
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Cuts:
    """How a space is cut to measure what that does.

    Attributes:
        readers: The layers that read it.
        mark: What the levels depend on, as text.
        make: The levels, by rising error; made where they are not in the cache, for a move takes as much as a weight.
    """

    readers: tuple[Layer, ...]
    mark: str
    make: Callable[[], Sequence[Level]]


def measure_space_damage(
    model: ir.Model,
    cuts: Mapping[str, Cuts],
    samples: Samples,
    *,
    told: Told | None = None,
    progress: Callable[[Sequence[str]], Iterable[str]] = lambda names: names,
) -> dict[str, DamageCurve]:
    """Cut every space to a few widths, one space at a time.

    Args:
        model: Normalised; not changed.
        cuts: By the space's name.
        samples: As the model takes them; others than those that the levels are fitted to, which flatter them.
        told: What is known of the outputs, see `output_kinds`.
        progress: Wraps the list of names.

    Raises:
        ModelError: The model does not run on the samples, or has no output that can be measured.

    Returns:
        The curves by the space's name; none where no output moves, which a note says.
    """
    survey = _Survey(model, samples, told or Told(), "spaces")
    keys = {name: f"{name} {cut.mark}" for name, cut in cuts.items()}
    made = {value.name: place for place, node in enumerate(model.graph) for value in node.outputs}

    def place(name: str) -> int:
        return min(made.get(layer.node.outputs[0].name, -1) for layer in cuts[name].readers)

    clear = _clear({name: sum(layer.macs or 0 for layer in cut.readers) for name, cut in cuts.items()})
    for name in progress(sorted(cuts, key=place)):  # the samples go through the network once
        if keys[name] not in survey:
            points = [Point(level.error, level.moves, 1.0) for level in cuts[name].make()]
            survey.measure(keys[name], points, clear[name])
    return survey.curves(keys)


def _key(layer: Layer, moments: Mapping[str, Moments]) -> str:
    """A layer, and the data that its direction is found on."""
    found = moments.get(layer.name)
    seen = "" if found is None else hashlib.sha256(np.ascontiguousarray(found.mean).data).hexdigest()
    return f"{layer.name} {seen}"


def _fingerprint(model: onnx.ModelProto, samples: Samples, how: str, told: Told) -> str:
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
    return f"{_VERSION} {digest.hexdigest()} {how} {ERRORS} {PIECE} {LEAST} {PIECE_BYTES} {CLEAR} {VAGUE} {SURE} {told}"


class _Survey:
    """Curves that are measured one after another, as far as the cache does not hold them."""

    def __init__(self, model: ir.Model, samples: Samples, told: Told, how: str) -> None:
        self._model, self._samples, self._told = model, samples, told
        self._proto = to_proto(model, apart=True)
        self._cache = Cache("damage", _fingerprint(self._proto, samples, how, told))
        self._network: MovedNetwork | None = None

    def __contains__(self, key: str) -> bool:
        return self._cache.get(key) is not None

    def measure(self, key: str, points: Sequence[Point], clear: float) -> None:
        """Measure one, and keep it."""
        if self._network is None:
            self._network = MovedNetwork(self._model, self._proto, self._samples, self._told)
        self._cache.put(key, [[0.0, 0.0], *_curve(self._network, points, clear)])

    def curves(self, keys: Mapping[str, str]) -> dict[str, DamageCurve]:
        """Those of these keys, by the same names."""
        curves: dict[str, DamageCurve] = {}
        for name, key in keys.items():
            errors, damages = np.array(self._cache.get(key)).T
            if len(errors) > 1:
                rising = np.maximum.accumulate(damages)
                curves[name] = DamageCurve(errors, rising + _SLOPE * rising[-1] * errors)
        if curves and all(curve.damages[-1] <= 0 for curve in curves.values()):
            note("no output moves when the layers do: there is nothing to plan by but the weights")
            return {}
        return curves


def _clear(macs: Mapping[str, int]) -> dict[str, float]:
    """What part of its damage a subject's standard error may be, by name.

    What a plan spends on a layer is about in proportion to its MACs, and samples in proportion to what each adds make a
    sum most certain (Neyman, "On the Two Different Aspects of the Representative Method", 1934).
    """
    if not macs:
        return {}
    counts = np.maximum(np.array([*macs.values()], np.float64), 1.0)
    parts = np.clip(CLEAR * np.sqrt(counts.mean() / counts), CLEAR, VAGUE)
    return dict(zip(macs, parts.tolist(), strict=True))


def _curve(network: MovedNetwork, points: Sequence[Point], clear: float) -> list[list[float]]:
    """Pairs of an error and its damage, which is told within that part of it."""
    if not points:
        return []
    first, *others = network.pieces
    damages = network.moved(points)
    errors, middle = [point.error for point in points], damages[len(points) // 2]
    shape = [damage(first) for damage in damages]
    if shape[len(points) // 2] <= 0:  # an answer that few samples tip has no shape yet
        rows = [shape, *([damage(piece) for damage in damages] for piece in others)]
        return [[error, float(value)] for error, value in zip(errors, np.mean(rows, axis=0), strict=True)]
    heights = [shape[len(points) // 2]]
    for piece in others:
        heights.append(middle(piece))
        if np.std(heights, ddof=1) <= clear * np.mean(heights) * np.sqrt(len(heights)):
            break
    height = float(np.mean(heights)) / heights[0]
    return [[error, height * value] for error, value in zip(errors, shape, strict=True)]


def _direction(group: tuple[Layer, ...], scheme: str, evidence: Evidence) -> list[Point]:
    """The points along the way in which factorisation moves a weight; none where there is none."""
    owner = group[0]
    assert owner.geometry is not None and owner.layout is not None
    fitting = candidates(scheme, owner.geometry.kernel)
    if not fitting:
        return []
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
        return []  # the weight is of rank 1: nothing is lost at any rank
    step = fitting[0].merge(fitting[0].split_by(weight, rank, moment, exact=False)) - weight
    told = len(rank) == 1 or not isinstance(moment, np.ndarray)  # for Tucker-2 of outputs there is no exact figure
    reached = float(errors[rank]) if told else _relative(step, weight, moment)
    if reached <= 0:
        return []
    shift = mean_error(-step, moments) if moments is not None and corrects_bias(owner) else None
    moves = (Move(group, step, shift),)
    return [Point(error, moves, float(np.sqrt(error / reached))) for error in ERRORS]


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
