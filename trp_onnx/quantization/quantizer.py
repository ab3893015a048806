"""`trp-onnx quantize`: int8 after low rank, measured on what was written.

open -> normalise -> balance factors -> calibrate -> keep in float what int8 hurts -> save -> verify -> measure
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from trp_onnx.calibration.moments import with_outputs
from trp_onnx.data import Data, Dataset, open_data
from trp_onnx.errors import DataError, ModelError, UsageError, VerificationError
from trp_onnx.evaluation.evaluation import Evaluation
from trp_onnx.evaluation.judging import judge
from trp_onnx.evaluation.metric import Asked, Score
from trp_onnx.evaluation.outputs import ClassLabels, Output, Told, read_said
from trp_onnx.evaluation.verify import complaint
from trp_onnx.files.made import Made, opened
from trp_onnx.files.paths import cannot_write, guard
from trp_onnx.files.staging import Staging
from trp_onnx.graph.batching import find_batching, run_samples
from trp_onnx.graph.in_memory import IN_MEMORY, ModelLike, model_file, shown
from trp_onnx.graph.inputs import Run, inputs_of
from trp_onnx.graph.layers import Layer, find_layers
from trp_onnx.graph.model import file_bytes, open_model, to_proto, write_model
from trp_onnx.graph.session import open_session, run_session
from trp_onnx.graph.sizes import sizes_from
from trp_onnx.job import Device, NetworkOptions
from trp_onnx.job.network import Shapes
from trp_onnx.latency.benchmark import bench
from trp_onnx.latency.timing import Ratio
from trp_onnx.lowrank.linalg import Array
from trp_onnx.passes import CleanUpPass, FoldWeightsPass
from trp_onnx.passes.balance_factors import BalanceFactorsPass, between, pairs_of
from trp_onnx.passes.calibrated import Calibrated, in_int8
from trp_onnx.passes.network import Network
from trp_onnx.printable import printable
from trp_onnx.progress import at_work
from trp_onnx.quantization.sensitivity import InFloat, keep_what_is_hurt
from trp_onnx.rows import Headlined, in_bytes
from trp_onnx.schema import check_type, held, plain

CALIBRATION, JUDGING, LEAST = 256, 256, 32
"""Samples that ranges are taken of, samples that int8 is judged on, and the fewest of both together."""

_STORED_TWICE = 1024
"""Bytes of a tensor from which a second copy is worth a note."""

_OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)

_VERIFIED = 32
"""Samples that the written file is run on."""


@dataclass(frozen=True)
class Variant:
    """One file of the comparison.

    Attributes:
        name: "float", "int8", and with the original before them "original" and "original, int8".
        bytes: Its size.
        score: On the test data; None without any.
        milliseconds: Median run, for orientation.
        ratio: Speed-up over the first of the table.
    """

    name: str
    bytes: int
    score: Score | None
    milliseconds: float
    ratio: Ratio


@dataclass(frozen=True, repr=False)
class Quantized(Headlined, Made):
    """A network in int8.

    Attributes:
        source: The float file, or "a model in memory".
        layers: Layers in int8.
        in_float: Layers that stayed in float, with reasons.
        lost: What is lost on the samples that int8 was judged on, in the metric's unit; without one in points of
            accuracy by the float model's own probabilities, where it gives any, else in per cent (see `sensitivity`).
        measure: The same in words: what was measured, and of which output.
        variants: Float and int8 side by side.
        notes: What a reader should know.
    """

    source: str
    layers: int
    in_float: tuple[InFloat, ...]
    lost: float
    measure: str
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]

    def headline(self) -> list[Sequence[str]]:
        """Size, score and speed of each file."""
        scores = [variant.score for variant in self.variants if variant.score is not None]
        counted = printable(scores[0].metric.name) if scores else "score"
        return [("", "size", counted, "time", "speed-up"), *map(_row, self.variants)]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        variants = [
            plain(replace(variant, score=None))
            | {"score": None if variant.score is None else variant.score.to_dict()}
            for variant in self.variants
        ]  # fmt: skip
        return {
            "model": self.source,
            "output": IN_MEMORY if self.path is None else str(self.path),
            "layers": self.layers,
            "in_float": plain(self.in_float),
            "lost": self.lost,
            "measure": self.measure,
            "variants": variants,
            "notes": list(self.notes),
        }


def _row(variant: Variant) -> tuple[str, ...]:
    score = "-" if variant.score is None else variant.score.metric.text(variant.score.value)
    return (
        variant.name, in_bytes(variant.bytes), score, f"{variant.milliseconds:.3f} ms", f"{variant.ratio.median:.3f}x"
    )  # fmt: skip


def quantize(
    model: ModelLike,
    out: str | PathLike[str] | None = None,
    data: Data | None = None,
    *,
    test: Data | None = None,
    max_drop: float = 1.0,
    metric: Asked | None = None,
    keep_ends: bool = False,
    original: ModelLike | None = None,
    network: NetworkOptions | None = None,
    device: Device | None = None,
) -> Quantized:
    """Quantise a network to int8, verified on the written file.

    Args:
        model: The float network, compressed or not: a file, its bytes, an `onnx.ModelProto` or an `onnx_ir.Model`; not
            modified.
        out: Where the int8 one goes; without it the result stays in memory.
        data: Samples to calibrate and to judge on, labels not needed; not the test data.
        test: Samples; every file is measured on them once, at the end.
        max_drop: Points of accuracy to lose at most, by the float model's own probabilities; of outputs that are no
            scores of classes per cent of what `Quantized.measure` names: mean square error, cosine, elements that
            differ. With `metric` what may be lost by that, in its unit. Layers return to float until it holds.
        metric: What int8 is judged by, and files are measured by: see `evaluate`.
        keep_ends: Whether the first and the last layer stay in float.
        original: The dense network, to be quantised in the same way and measured beside.
        network: How the network is opened, and how samples become its inputs.
        device: What it is made for; its threads are those of the timing.

    Raises:
        ModelError: The model cannot be read, run or quantised, or is in int8 already.
        DataError: The data does not fit, or holds too few samples.
        UsageError: An option makes no sense.
        OutputError: The result cannot be written.
        VerificationError: The written file does not run or gives NaN; it was removed.
    """
    max_drop = held(max_drop, float, "max_drop")
    if not 0 <= max_drop < 100:
        raise UsageError(f"--max-drop is what may be lost, from 0 to below 100, not {max_drop}")
    if data is None:
        raise UsageError("int8 is calibrated on samples: give --data")
    network, device = network or NetworkOptions(), device or Device()
    check_type(network, NetworkOptions, "network")
    check_type(device, Device, "device")
    guard(writes=[out], reads=[model, data, original, test])
    with at_work() as heard, ExitStack() as stack:
        source, place = stack.enter_context(model_file(model, out))
        dense = None if original is None else stack.enter_context(model_file(original))[0]
        opened_float = open_model(source)
        _check_floats(opened_float)
        inputs, said = inputs_of(opened_float), read_said(network.output_kinds)
        dataset = open_data(data, network.preprocessing).bound(inputs)
        tested = None if test is None else open_data(test, network.preprocessing).bound(inputs)
        _check_count(dataset)
        evaluation = None if tested is None else Evaluation(metric, dense or source, tested, said)
        shapes = sizes_from(
            opened_float, dataset.take(np.arange(1))[0].feeds, network.input_shapes, samples=True
        )  # fmt: skip
        wish = _Wish(dataset, said, metric, max_drop, keep_ends, device.target == "arm", shapes, network.simplify)
        judging = wish.judged_by(source)
        stack.enter_context(_space_for(place))
        staging = stack.enter_context(Staging(place, opened_float))
        made = _quantise(source, wish, judging)
        staging.save(ir.from_proto(made.proto))
        _verify(staging.path, source, dataset)
        files = {"float": source, "int8": staging.path}
        notes = [*heard, *made.notes]
        if dense is not None:
            path = staging.folder / f"original-of-{place.name}"
            other = _quantise(dense, wish, wish.judged_by(dense))
            write_model(ir.from_proto(other.proto), path)
            notes += [f"original: {note}" for note in other.notes]
            files = {"original": dense, "original, int8": path} | files
        variants, timed = _side_by_side(files, evaluation, shapes, device.threads)
        staging.publish()
        return Quantized(
            opened(place, in_memory=out is None), None if out is None else place, shown(model), made.layers,
            tuple(made.in_float), made.lost, made.measure, tuple(variants), (*notes, *timed),
        )  # fmt: skip


def _check_floats(model: ir.Model) -> None:
    if any(spec.dtype in _OTHER_FLOATS for spec in inputs_of(model).values()):
        raise ModelError("the model takes floats that are no float32: quantize takes the float32 model")


@contextmanager
def _space_for(out: Path) -> Iterator[None]:
    """A full disk, of the result or of temporary files, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise cannot_write(out, error) from error


@dataclass(frozen=True)
class _Made:
    proto: onnx.ModelProto
    layers: int
    in_float: list[InFloat]
    lost: float
    measure: str
    notes: list[str]


@dataclass(frozen=True)
class _Wish:
    """How models are quantised."""

    dataset: Dataset
    said: Mapping[str, Output]
    metric: Asked | None
    max_drop: float
    keep_ends: bool
    signed: bool
    input_shapes: Shapes | None
    simplify: bool

    def judged_by(self, file: Path) -> Evaluation | None:
        """What int8 is judged by in place of the float model's own probabilities, where a metric is asked for."""
        if self.metric is None:
            return None
        return judge(self.metric, file, self.dataset.subset(_halves(len(self.dataset))[1]), self.said).evaluation


def _quantise(source: Path, wish: _Wish, evaluation: Evaluation | None) -> _Made:
    """One model in int8, in memory."""
    model, dataset = open_model(source), wish.dataset
    if any("QuantizeLinear" in node.op_type for node in model.graph):
        raise ModelError("the model is in int8 already: quantize takes the float one")
    network = Network.of(source, model, wish.input_shapes, simplify=wish.simplify)
    normal, layers = network.normal, network.layers
    kinds = {layer.constant.dtype for layer in layers if layer.constant is not None}
    if not kinds <= {ir.DataType.FLOAT, None}:
        raise ModelError("the model has weights that are no float32: quantize takes the float32 model")
    notes = _fold_weights(normal, layers)
    layers = find_layers(normal, wish.input_shapes)
    for i, node in enumerate(normal.graph):
        node.name = node.name or f"{node.op_type}_{i}"
    halves = _halves(len(dataset))
    batching = find_batching(open_session(to_proto(normal, apart=True)), dataset.take(halves[0][:2])[0], dataset.inputs)
    calibration, judging = ([run for run, _ in dataset.subset(indices).runs(batching)] for indices in halves)
    pairs = pairs_of(layers)
    if pairs:
        BalanceFactorsPass(_largest(normal, pairs, calibration))(normal)
    calibrated, proto = Calibrated(normal, calibration, signed=wish.signed), to_proto(normal, apart=True)
    ends = [layer.name for layer in layers if wish.keep_ends and layer.role and layer.name in calibrated.layers]
    told = Told(wish.said, ClassLabels.of(dataset.labels, dataset.preprocessing.label_offset))
    judged = keep_what_is_hurt(calibrated, proto, judging, wish.max_drop, ends, told, evaluation)
    small = in_int8(judged.proto)
    named = {entry.layer for entry in judged.in_float}
    left = [
        InFloat(name, "the quantiser leaves it in float") for name in calibrated.layers if name not in {*small, *named}
    ]
    left += [
        InFloat(layer.name, f"it stands in the {layer.place}, where the quantiser does not go")
        for layer in layers
        if layer.place and layer.constant is not None
    ]
    if judged.lost > wish.max_drop:
        notes.append(f"even with every layer in float more is lost than --max-drop {wish.max_drop:g} allows")
    if not small:
        notes.append("every layer stayed in float: int8 gains nothing here")
    return _Made(judged.proto, len(small), [*judged.in_float, *left], judged.lost, judged.measure, notes)


def _check_count(dataset: Dataset) -> None:
    if len(dataset) < LEAST:
        raise DataError(
            f"'{dataset.source}' has {len(dataset)} samples: int8 is calibrated and judged on {LEAST} at least"
        )


def _halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of so many samples ranges are taken of, and which judge int8."""
    order = np.random.default_rng(0).permutation(count)
    return order[: min(CALIBRATION, count // 2)], order[count // 2 :][:JUDGING]


def _fold_weights(model: ir.Model, layers: Sequence[Layer]) -> list[str]:
    """Weights behind Transpose or Reshape become initializers, which the quantiser takes; notes on copies."""
    sources = [
        (layer.name, value)
        for layer in layers
        if layer.constant is not None
        for node in layer.constant.nodes
        for value in node.inputs
        if value is not None and value.const_value is not None and value.const_value.nbytes >= _STORED_TWICE
    ]
    FoldWeightsPass()(model)
    CleanUpPass()(model)
    return [
        f"the weight of '{name}' is stored twice: other nodes read it as '{value.name}'"
        for name, value in sources
        if value.uses()
    ]


def _largest(
    model: ir.Model, pairs: Sequence[tuple[Any, Any]], runs: Sequence[Run]
) -> dict[str, Array]:  # fmt: skip
    """Largest absolute activation of each channel between two layers, (C,), by the name of the value."""
    names = {between(first): first for first, _ in pairs}
    session = open_session(with_outputs(to_proto(model, apart=True), list(names)))
    found: dict[str, Array] = {}
    for run in runs:
        values = run_session(session, run.feeds)
        for name, layer in names.items():
            axis = 1 if layer.op == "Conv" else values[name].ndim - 1
            others = tuple(i for i in range(values[name].ndim) if i != axis)
            largest = np.abs(values[name]).max(axis=others).astype(np.float64)
            found[name] = np.maximum(found[name], largest) if name in found else largest
    return found


def _verify(path: Path, source: Path, dataset: Dataset) -> None:
    """The written file is sound, runs, and gives numbers where its source does."""
    complained = complaint(path)
    if complained:
        raise VerificationError(f"the int8 file does not pass onnx's checker: {complained}")
    samples = dataset.take(np.arange(min(len(dataset), _VERIFIED)))
    sessions = open_session(source), open_session(path)
    batching = find_batching(sessions[0], samples[0], dataset.inputs)
    expected, found = (run_samples(session, samples, batching) for session in sessions)
    for name, array in found.items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            before = expected[name]
            was = np.isfinite(before) if before.shape == array.shape else np.array(True)
            if (was & ~np.isfinite(array)).any():
                raise VerificationError(f"output '{name}' of the int8 file is NaN or infinite; it was not kept")


def _side_by_side(
    files: Mapping[str, Path],
    evaluation: Evaluation | None,
    input_shapes: Mapping[str, Sequence[int]] | None,
    threads: int,
) -> tuple[list[Variant], tuple[str, ...]]:
    """Size, score and time of every file, and notes on those; times in one interleaved run."""
    scores = [None if evaluation is None else evaluation.scores(path).after for path in files.values()]
    timed = bench(list(files.values()), input_shapes=input_shapes, threads=threads, rounds=100)
    variants = [
        Variant(name, file_bytes(path), score, contender.milliseconds, contender.ratio)
        for (name, path), score, contender in zip(files.items(), scores, timed.contenders, strict=True)
    ]
    return variants, timed.notes
