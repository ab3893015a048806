"""First and second moments of what flows into each layer, from one streaming pass over samples.

For a convolution the moments are those of its patches, at positions drawn at random and evenly over the samples;
for Gemm and MatMul those of the rows. Only the sums are kept, whatever the number of samples. A moment is quadratic in
the width of a patch: the widest, beyond `ALL_BYTES` of all layers, stay in temporary files. A kernel whose moment
would take more than `LAYER_BYTES` has it as a product (`separable`). Where it is none, and where there is no kernel, a
layer goes by its weights, which a note says.

Sums are taken of `x - s`, s being the mean of the first batch, so that the covariance is not a small
difference of large numbers:

    mean = s + E[x - s]        covariance = E[(x - s)(x - s)^T] - E[x - s] E[x - s]^T
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from trp_onnx.calibration.separable import TRUSTED, Marginals, MarginalSums, alike, bearable, countable
from trp_onnx.graph.batching import Batching, find_batching
from trp_onnx.graph.bias import corrects_bias
from trp_onnx.graph.branch_values import Asked, give_out
from trp_onnx.graph.inputs import Run, Samples
from trp_onnx.graph.layers import Layer, LayerKey
from trp_onnx.graph.model import to_proto
from trp_onnx.graph.session import Arrays, open_session, run_session
from trp_onnx.lowrank.linalg import Array
from trp_onnx.lowrank.schemes import Moment
from trp_onnx.process import scratch
from trp_onnx.process.parallel import each
from trp_onnx.progress import note

PATCHES, PER_ENTRY, PLENTY = 8192, 4, 64
"""Patches of a layer: so many, but from the second to the third number for each of a patch's entries."""

FEW = 0.25
"""Patches for each of their entries up to which they are kept in place of their moment, which takes more."""

SHRINKAGE = 1e-4
"""Part of the mean variance that every direction is given: those that the samples never take keep their weights."""

LAYER_BYTES, ALL_BYTES = 384 << 20, 1 << 30
"""What the moment of a layer may take in float32, and those of all in memory; a layer that is factorised takes a few
times its own in float64."""

_BATCH_BYTES = 128 << 20
"""Of activations of one run, and of the patches that are taken of them for one layer."""


@dataclass(frozen=True)
class Moments:
    """Of the patches of one layer.

    Attributes:
        mean: (G, D), D = C times the kernel, in the order of W.
        kept: The covariance over the square of `scale`, (G, D, D), in float32, as it was summed.
        patches: How many they were taken of.
        scale: The largest entry of the first of them: its square may not fit in float32.
        few: Whether the patches are kept in its place, about their mean and over `scale`: (G, p, D).
        marginals: What there is in place of both where patches are too wide.
    """

    mean: Array
    kept: NDArray[np.float32]
    patches: int
    scale: float = 1.0
    few: bool = False
    marginals: Marginals | None = None

    @property
    def spread(self) -> NDArray[np.float32]:
        """The covariance over the square of `scale`, (G, D, D), in float32."""
        if not self.few:
            return self.kept
        return np.asarray(np.swapaxes(self.kept, 1, 2) @ self.kept / np.float32(self.patches))

    @property
    def covariance(self) -> Array:
        """(G, D, D)."""
        return self.scale**2 * self.spread.astype(np.float64)

    def second(self, *, centred: bool, exact: bool = True) -> NDArray[Any]:
        """Second moments about the mean or about zero, over the square of `scale`: (G, D, D).

        Without `exact` they are in float32.
        """
        found: NDArray[Any] = self.spread.astype(np.float64 if exact else np.float32)
        if not centred:
            found += self._mean_square(found.dtype)
        return found

    def _mean_square(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """What the mean adds to the moments about it, over the square of `scale`: (G, D, D)."""
        mean = (self.mean / self.scale).astype(dtype)
        return np.asarray(mean[:, :, None] * mean[:, None, :])

    def moment(self, *, centred: bool, exact: bool = True) -> Moment:
        """What an error of the weight is weighed with, whose scale means nothing: (G, D, D), or a product.

        Args:
            centred: Whether the layer's bias takes up the error of the mean.
            exact: False where float32 will do.
        """
        if self.marginals is not None:
            return self.marginals.moment(centred=centred)
        return self.matrix(centred=centred, exact=exact)

    def matrix(self, *, centred: bool, exact: bool = True) -> Array:
        """`moment` where it is a matrix, drawn towards its diagonal where there are few patches for their entries.

        What makes up for what goes rests on correlations, and those of few patches are chance: of fewer than
        `PER_ENTRY` patches for each entry of one, the part that is missing is taken from the diagonal (shrinkage as by
        Ledoit and Wolf, "Honey, I Shrunk the Sample Covariance Matrix", 2004, by as much as counts say).
        """
        found = self.second(centred=True, exact=exact)
        missing = 1.0 - self.patches / (PER_ENTRY * found.shape[1])
        if missing > 0:
            diagonal = np.einsum("gdd->gd", found).copy()
            found *= np.asarray(1.0 - missing, found.dtype)
            np.einsum("gdd->gd", found)[:] = diagonal
        if not centred:
            found += self._mean_square(found.dtype)
        power = np.trace(found, axis1=1, axis2=2, dtype=np.float64) / found.shape[1]
        # Where nothing flows, the weights' own errors count.
        floor = np.where(power > np.finfo(np.float64).tiny, SHRINKAGE * power, 1.0)
        np.einsum("gdd->gd", found)[:] += floor[:, None].astype(found.dtype)
        return np.asarray(found)


def pooled(one: Moments, other: Moments) -> Moments:
    """The moments of both sets of patches together; not of products."""
    part = one.patches / (one.patches + other.patches)
    mean = part * one.mean + (1 - part) * other.mean
    apart = (one.mean - other.mean) / one.scale
    spread = part * one.spread + (1 - part) * (other.scale / one.scale) ** 2 * other.spread
    spread = spread + part * (1 - part) * apart[:, :, None] * apart[:, None, :]
    return Moments(mean, spread.astype(np.float32), one.patches + other.patches, one.scale)


def mean_error(error: Array, moments: Moments) -> Array:
    """What an error of the weight takes from the mean of the outputs: (G, N, C, *k) -> (G N,)."""
    groups, n = error.shape[:2]
    return np.asarray(error.reshape(groups, n, -1) @ moments.mean[:, :, None]).reshape(-1)


def observable(layer: Layer) -> bool:
    """Whether `collect_moments` sees what flows into a layer: everywhere but in the bodies of loops."""
    return layer.reason is None and layer.layout is not None and not layer.looped


def moment_bytes(layer: Layer, parts: int = 1) -> int:
    """What the moment of `parts` patches of a layer, side by side, takes in float32."""
    assert layer.geometry is not None
    return 4 * layer.geometry.groups * (parts * _patch_size(layer)) ** 2


def _patch_size(layer: Layer) -> int:
    """D: entries of a patch of one group."""
    assert layer.geometry is not None
    return layer.geometry.parameters // max(1, layer.geometry.groups * layer.geometry.out_channels)


def _affordable(layers: Sequence[Layer]) -> dict[LayerKey, Sums | MarginalSums]:
    """What sums moments: in memory, in a temporary file, or their marginals alone; a note about the other layers."""
    sizes = {layer.key: moment_bytes(layer) for layer in layers}
    kernels = {layer.key: layer.geometry.kernel for layer in layers if layer.geometry is not None}
    total, on_disk, taken = 0, 0, dict[LayerKey, Sums | MarginalSums]()
    for key, size in sorted(sizes.items(), key=lambda item: item[1]):
        if size > LAYER_BYTES:
            if np.prod(kernels[key]) > 1:
                taken[key] = MarginalSums(kernels[key], SHRINKAGE)
            continue
        total += size
        on_disk += size * (total > ALL_BYTES)
        if on_disk <= scratch.room():
            taken[key] = Sums(in_memory=total <= ALL_BYTES)
    left = [layer for layer in layers if layer.key not in taken]
    if left:
        note(
            f"{len(left)} layers ('{left[0].name}', ...) are judged by their weights, not by the data: the moments of "
            f"what flows into them would take {sum(sizes[key] for key in sizes.keys() - taken) / 2**30:.1f} GB"
        )
    return taken


def collect_moments(
    model: ir.Model,
    layers: Sequence[Layer],
    samples: Samples,
    *,
    beside: Samples | None = None,
    progress: Callable[[Sequence[Run]], Iterable[Run]] = lambda runs: runs,
) -> dict[str, Moments]:
    """Run the samples, and take the moments of what every layer sees.

    Args:
        model: Normalised; not changed.
        layers: Its layers.
        samples: As the model takes them.
        beside: Others that the layers are judged on, of which no moments are taken.
        progress: Wraps the list of runs.

    Returns:
        Moments by the layer's name; layers that share a weight share them. Layers that are not `observable` have
        none, nor have those for which memory does not suffice or whose inputs are not finite.

    Raises:
        ModelError: The model does not run on the samples.
    """
    seen = [layer for layer in layers if observable(layer)]
    sums = _affordable(seen)
    seen = [layer for layer in seen if layer.key in sums]
    proto = to_proto(model, apart=True)
    batching = find_batching(open_session(proto), samples.longest, samples.inputs)
    flows = _give_out(proto, seen)
    session = open_session(with_outputs(proto, sorted(set(flows.values()) - set(samples.inputs))))
    sharing: dict[LayerKey, list[Layer]] = {key: [] for key in sums}
    for layer in seen:
        sharing[layer.key].append(layer)
    positions = {key: np.random.default_rng([*sharing[key][0].name.encode()]) for key in sums}
    for run in progress(_runs(session, samples, batching)):
        values = run_session(session, run.feeds) | run.feeds

        def gather(key: LayerKey, run: Run = run, values: Arrays = values) -> None:
            for layer in sharing[key]:
                value = seen_by(layer, run, values[flows[layer.name]])
                if value.size:  # of a branch that was not taken it is empty
                    if not sums[key].count:  # whose scale is that of the first
                        sums[key].finite = sums[key].finite and alike(value)
                    sums[key].add(patches_of(layer, value, len(samples), positions[key]))

        for _ in each(gather, list(sums)):
            pass
    for run in _runs(session, beside, batching) if beside is not None else ():
        values = run_session(session, run.feeds) | run.feeds
        for layer in seen:
            if sums[layer.key].count:
                sums[layer.key].beside(seen_by(layer, run, values[flows[layer.name]]))
    strange = [layer.name for layer in seen if not sums[layer.key].finite]
    if strange:
        note(
            f"what flows into '{strange[0]}'{' and others' if len(strange) > 1 else ''} is not finite on the data, or "
            "far larger in some samples than in others: such a layer is judged by its weights"
        )
    idle = [layer.name for layer in seen if not sums[layer.key].count and sums[layer.key].finite]
    if idle:
        note(
            f"no sample reaches '{idle[0]}'{' and others' if len(idle) > 1 else ''}, in a branch that none takes: "
            "such a layer is judged by its weights"
        )
    found: dict[str, Moments] = {}
    for key, total in sums.items():
        if total.count and total.finite:
            moments = total.moments() if isinstance(total, Sums) else _product(sharing[key][0], total)
            found |= {layer.name: moments for layer in sharing[key]} if moments is not None else {}
    return {layer.name: found[layer.name] for layer in seen if layer.name in found}


def _product(layer: Layer, sums: MarginalSums) -> Moments | None:
    """Moments as a product, if that predicts what errors do; a note says how well."""
    mean, marginals = sums.marginals()
    predicted, true, blind = marginals.judged(layer.weight(), centred=corrects_bias(layer))
    off = abs(predicted / true - 1) if true > 0 else 1.0
    refused = ""
    if off > TRUSTED:
        refused = "that is too far, so the layer is judged by its weights"
    elif true > blind:
        refused = "factors by weights err less, so the layer is judged by its weights"
    note(
        f"the moment of what flows into '{layer.name}' would take {moment_bytes(layer) / 2**30:.1f} GB; a product of "
        f"moments over channels and kernel axes predicts the layer's error on held-out patches {off:.0%} off"
        + (f"; {refused}" if refused else "")
    )
    if refused:
        return None
    marginals = replace(marginals, held_out=marginals.held_out[:, :0])  # which have done what they are for
    return Moments(mean, np.zeros(0, np.float32), sums.count, marginals=marginals)


def flow_of(layer: Layer) -> str:
    """Name of the value that flows into an observable layer."""
    assert layer.layout is not None
    value = layer.node.inputs[1 - layer.layout.weight_index]
    assert value is not None
    return value.name or ""


def _give_out(model: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, str]:
    """What flows into each layer, by its name: the names that these values have in the main graph, once it runs."""
    asked = {
        layer.node.outputs[0].name or "": Asked(flow_of(layer), int(layer.constant.dtype or ir.DataType.FLOAT))
        for layer in layers
        if layer.place and layer.constant is not None
    }
    inner = give_out(model.graph, asked)
    return {layer.name: inner.get(layer.node.outputs[0].name or "", flow_of(layer)) for layer in layers}


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model, with these values among its outputs."""
    known = {value.name for value in model.graph.output}
    # The runtime knows their types.
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return model


def _runs(session: Any, samples: Samples, batching: Batching) -> list[Run]:
    """Samples in runs whose activations stay within bounds; a fixed batch size is kept to."""
    if not batching.fixed and batching.size > 1:
        one = run_session(session, samples.first(1).longest.feeds)
        size = max(1, sum(np.asarray(value).nbytes for value in one.values()))
        batching = replace(batching, size=max(1, min(batching.size, _BATCH_BYTES // size)))
    return list(batching.split(samples.by_shape()))


def patches_of(
    layer: Layer, value: np.ndarray, samples: int, rng: np.random.Generator, as_many_as: Layer | None = None
) -> np.ndarray:
    """Some of the patches that a layer sees, as many as another wants where one is given: (G, p, D) in float32."""
    assert layer.geometry is not None and layer.layout is not None
    model = as_many_as or layer
    assert model.geometry is not None
    size = _patch_size(model)
    fits = _BATCH_BYTES // (4 * size * model.geometry.groups * max(1, len(value)))
    wanted = max(PER_ENTRY * size, min(PATCHES, PLENTY * size))
    per_sample = max(1, min(fits, -(-wanted // samples)))
    if layer.op in ("Conv", "ConvTranspose"):
        return _windows(layer, value, per_sample, rng)
    if _summed_axis(layer, value) != value.ndim - 1:
        value = np.swapaxes(value, -1, -2)
    rows = _rows(value, layer.layout.batch)
    count = min(rows.shape[1], per_sample * max(1, len(value)))
    chosen = rows[:, rng.choice(rows.shape[1], count, replace=False)] if count < rows.shape[1] else rows
    return np.asarray(chosen, np.float32)


def _rows(value: np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
    """The rows that each matrix of a batch of them is multiplied with: (G, p, D)."""
    if not batch:
        return value.reshape(1, -1, value.shape[-1])
    value = value[None] if value.ndim == 1 else value
    value = np.broadcast_to(value, (*np.broadcast_shapes(value.shape[:-2], batch), *value.shape[-2:]))
    first = value.ndim - 2 - len(batch)
    groups = [first + axis for axis, size in enumerate(batch) if size > 1]
    others = [axis for axis in range(value.ndim - 1) if axis not in groups]
    return value.transpose(*groups, *others, value.ndim - 1).reshape(int(np.prod(batch)), -1, value.shape[-1])


def _summed_axis(layer: Layer, value: np.ndarray) -> int:
    """The axis of what flows into a product that it sums over."""
    assert layer.layout is not None
    other = "transB" if layer.layout.on_left else "transA"
    turned = value.ndim > 1 and layer.layout.on_left != bool(layer.node.attributes.get_int(other, 0))
    return value.ndim - 1 - turned


def seen_by(layer: Layer, run: Run, value: np.ndarray) -> np.ndarray:
    """What flows into a layer in a run, without what fills the batch up; with it where the layer mixes samples."""
    mixes = layer.op not in ("Conv", "ConvTranspose") and _summed_axis(layer, value) == 0
    return value if mixes else np.asarray(run.counted({"": value})[""])


def _windows(layer: Layer, value: np.ndarray, per_sample: int, rng: np.random.Generator) -> np.ndarray:
    """Patches of a convolution at random output positions, the same in all samples of the batch."""
    geometry, node = layer.geometry, layer.node
    assert geometry is not None
    axes = len(geometry.kernel)
    sizes = value.shape[2:]
    stride = node.attributes.get_ints("strides", (1,) * axes)
    dilation = node.attributes.get_ints("dilations", (1,) * axes)
    transposed = layer.op == "ConvTranspose"
    begin, out = (_cropping if transposed else _padding)(layer, sizes, stride, dilation)
    total = int(np.prod(out))
    count = min(total, per_sample)
    flat = rng.choice(total, count, replace=False) if count < total else np.arange(total)
    index: list[Any] = [slice(None), slice(None)]
    inside = np.ones((), dtype=bool)
    for axis, position in enumerate(np.unravel_index(flat, out)):
        tap = np.arange(geometry.kernel[axis]) * dilation[axis] - begin[axis]
        shape = [count, *(-1 if a == axis else 1 for a in range(axes))]
        if transposed:  # what a tap carries to this position comes from there, if from anywhere
            place, rest = np.divmod(position[:, None] - tap, stride[axis])
            inside = inside & (rest == 0).reshape(shape)
        else:
            place = position[:, None] * stride[axis] + tap
        inside = inside & ((place >= 0) & (place < sizes[axis])).reshape(shape)
        index.append(np.clip(place, 0, sizes[axis] - 1).reshape(shape))
    taken = np.where(inside, value[tuple(index)], 0)  # (b, G C, p, *k)
    batch, channels = value.shape[:2]
    taken = taken.reshape(batch, geometry.groups, channels // geometry.groups, count, -1).transpose(1, 0, 3, 2, 4)
    return np.asarray(taken.reshape(geometry.groups, batch * count, -1), np.float32)


def _padding(
    layer: Layer, sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], tuple[int, ...]]:
    """Zeros before the first entry of each axis, and the sizes of the output (ONNX operator specification)."""
    assert layer.geometry is not None
    kernel, node = layer.geometry.kernel, layer.node
    axes = range(len(kernel))
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    reach = [(kernel[a] - 1) * dilation[a] + 1 for a in axes]
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        out = tuple(-(-sizes[a] // stride[a]) for a in axes)
        spare = [max(0, (out[a] - 1) * stride[a] + reach[a] - sizes[a]) for a in axes]
        return [s // 2 if automatic == "SAME_UPPER" else s - s // 2 for s in spare], out
    pads = node.attributes.get_ints("pads", (0,) * 2 * len(kernel)) if automatic == "NOTSET" else (0,) * 2 * len(kernel)
    out = tuple((sizes[a] + pads[a] + pads[a + len(kernel)] - reach[a]) // stride[a] + 1 for a in axes)
    return list(pads[: len(kernel)]), out


def _cropping(
    layer: Layer, sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], tuple[int, ...]]:
    """What a transposed convolution cuts off before each axis, and the sizes of its output (the same specification)."""
    assert layer.geometry is not None
    kernel, attributes = layer.geometry.kernel, layer.node.attributes
    axes = range(len(kernel))
    automatic = attributes.get_string("auto_pad", "NOTSET")
    extra = attributes.get_ints("output_padding", (0,) * len(kernel))
    full = [stride[a] * (sizes[a] - 1) + extra[a] + (kernel[a] - 1) * dilation[a] + 1 for a in axes]
    asked = attributes.get_ints("output_shape", ())
    if not asked and automatic not in ("SAME_UPPER", "SAME_LOWER"):
        pads = attributes.get_ints("pads", (0,) * 2 * len(kernel)) if automatic == "NOTSET" else (0,) * 2 * len(kernel)
        return list(pads[: len(kernel)]), tuple(full[a] - pads[a] - pads[a + len(kernel)] for a in axes)
    out = tuple(asked[-len(kernel) :]) if asked else tuple(sizes[a] * stride[a] for a in axes)
    spare = [max(0, full[a] - out[a]) for a in axes]
    return [s // 2 if automatic == "SAME_UPPER" else s - s // 2 for s in spare], out


class Sums:
    """Running sums of one layer's shifted patches."""

    def __init__(self, *, in_memory: bool = True) -> None:
        """Start with none, of which the second may stay in a temporary file."""
        self.count = 0
        self._zeros = np.zeros if in_memory else scratch.zeros
        self.finite = True
        self._scale = np.float32(1)  # squares of 1e20 do not fit in float32
        self._shift = np.zeros(0, np.float32)
        self._first = np.zeros(0)
        self._second = np.zeros(0, np.float32)
        self._few: list[np.ndarray] = []

    def add(self, patches: np.ndarray) -> None:
        """`patches`: (G, p, D); where one holds NaN, or what is far beyond the first, the sums say nothing any more."""
        if not self.finite:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            if not self.count:
                groups, _, size = patches.shape
                self._scale = np.float32(np.abs(patches).max(initial=0.0) or 1.0)
                self._shift = patches.mean(axis=1, keepdims=True)
                self._first = np.zeros((groups, size))
            patches = (patches - self._shift) / self._scale
        self.finite = countable(patches)
        if not self.finite:
            return
        self.count += patches.shape[1]
        self._first += patches.sum(axis=1, dtype=np.float64)
        self._few.append(patches)
        if self._second.size or self.count > FEW * patches.shape[-1]:
            self._multiply()

    def beside(self, value: np.ndarray) -> None:
        """What other samples bring, which is not summed; see `bearable`."""
        self.finite = self.finite and bearable(value, self._scale)

    def _multiply(self) -> None:
        """Add the patches that are kept to the second moment."""
        if not self._second.size:
            groups, _, size = self._few[0].shape
            self._second = self._zeros((groups, size, size), np.float32)
        for patches in self._few:
            self._second += np.swapaxes(patches, 1, 2) @ patches
        self._few = []

    def moments(self) -> Moments:
        """What they come to."""
        first = self._first / self.count
        mean, scale = self._shift[:, 0].astype(np.float64) + self._scale * first, float(self._scale)
        if self._few:
            patches = np.concatenate(self._few, axis=1) - first[:, None].astype(np.float32)
            return Moments(mean, patches, self.count, scale, few=True)
        spread = self._second
        spread /= self.count
        for group, shifted in enumerate(first):  # in place: it may have hundreds of megabytes
            spread[group] -= np.outer(shifted, shifted)
        return Moments(mean, spread, self.count, scale)
