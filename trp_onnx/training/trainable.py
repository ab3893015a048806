"""From a normalised model to one that the training runtime can train.

The training runtime reads opset 12 to 21 and IR up to 10, wants float32 weights as initializers and a free
batch size, and has no gradient for some operators. Each of these is brought about where that changes no
output, which is checked by running both; where it cannot be, one sentence says what stands in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from trp_onnx.errors import ModelError
from trp_onnx.graph.batching import Batching, find_batching
from trp_onnx.graph.inputs import Inputs, InputSpec, Run, inputs_of
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.model import to_proto
from trp_onnx.graph.session import Arrays, open_session, relative_error, run_session
from trp_onnx.process.silence import silence

OPSETS = (12, 21)
MAX_IR = 10
_SAME = 1e-3
"""Largest relative error of a rewritten model: another order of float32 sums."""


@dataclass(frozen=True)
class Trainable:
    """A model for the training runtime.

    Attributes:
        model: The model, batch free.
        parameters: Initializers that are trained.
        no_decay: Those of them that are no weights of a layer.
        statistics: Running means and variances.
        outputs: What the model gives on the samples that it was checked on.
    """

    model: onnx.ModelProto
    parameters: tuple[str, ...]
    no_decay: tuple[str, ...]
    statistics: tuple[str, ...]
    outputs: Arrays


def materialise(model: ir.Model, layers: Sequence[Layer], names: Collection[str]) -> None:
    """Turn the weights of some layers into float32 initializers, in place: they are to be trained.

    Args:
        model: The normalised model.
        layers: Its layers; to be found anew afterwards.
        names: Which of them.

    Raises:
        ModelError: A weight is of another float type.
    """
    for layer in layers:
        if layer.name not in names or layer.constant is None:
            continue
        value = layer.constant.value
        if layer.constant.dtype != ir.DataType.FLOAT:
            raise ModelError(
                f"weight '{value.name}' has type {layer.constant.dtype}: the training runtime trains float32, "
                "so give the float32 model and convert the result"
            )
        if value.is_initializer() and not isinstance(value.const_value, ir.ExternalTensor):
            continue
        name = value.name or layer.name
        tensor = ir.tensor(np.ascontiguousarray(layer.constant.array(), np.float32), name=name)
        if value.is_initializer():
            value.const_value = tensor
            continue
        value.replace_all_uses_with(ir.tape.Tape(model.graph).initializer(tensor, f"{name}/trained"))


def separate_vectors(model: ir.Model) -> None:
    """Give every layer biases, scales and statistics of its own, in place.

    Simplifiers merge initializers of equal values, which a fresh network's scales and biases are. Merged they
    would train as one.
    """
    for value in list(model.graph.initializers.values()):
        if value.const_value is None or len(value.const_value.shape) > 1:
            continue
        owned = False
        for node, place in list(value.uses()):
            if place not in _VECTORS.get(node.op_type, ()):
                continue
            if not owned:
                owned = True
                continue
            name = f"{value.name}/{node.outputs[0].name}/{place}"
            node.replace_input_with(place, ir.tape.Tape(model.graph).initializer(value.const_value, name))


def showing(model: ir.Model, inner: Sequence[str]) -> ir.Model:
    """A copy with some of its values as further outputs; the model itself for none."""
    if not inner:
        return model
    shown = model.clone()
    values = {value.name: value for node in shown.graph for value in node.outputs}
    shown.graph.outputs.extend(values[name] for name in inner)
    return shown


def make_trainable(model: ir.Model, run: Run) -> Trainable:
    """The model as the training runtime takes it.

    Args:
        model: Normalised; not changed.
        run: A few samples of the data, to check that the outputs stay the same.

    Raises:
        ModelError: It has no float weights, or something stands in the way.
    """
    original, inputs = to_proto(model), inputs_of(model)
    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    freed = _fixed_batch(original, inputs, run)
    _free_batch(proto, inputs, freed)
    proto = _convert(proto)
    _rewrite_operators(proto)
    outputs = _check_same(original, proto, inputs, run, freed)
    parameters, decayed, statistics = _parameters(proto)
    if not parameters:
        raise ModelError("the model has no float32 weights to train")
    no_decay = tuple(name for name in parameters if name not in decayed)
    return Trainable(proto, parameters, no_decay, statistics, outputs)


def _fixed_batch(model: onnx.ModelProto, inputs: Inputs, run: Run) -> int | None:
    """The only batch size that a model runs on, declared or not; None where it is free."""
    session = open_session(model)
    batching = find_batching(session, run, inputs)
    if batching.fixed or batching.size > 1:
        return batching.size if batching.fixed else None
    try:
        run_session(session, run.feeds)
    except ModelError:
        return 1
    return None  # samples that are seen together answer differently, but they are


def _free_batch(model: onnx.ModelProto, inputs: Inputs, size: int | None) -> None:
    """Make the batch size free where it was fixed, by declaration or by Reshapes inside."""
    for value in model.graph.input:
        axis = inputs[value.name].axis if value.name in inputs else None
        if axis is not None and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[axis].dim_param = "batch"
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    del model.graph.value_info[:]
    if size is None:
        return
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for tensor in model.graph.initializer:
        if tensor.name in shapes and tensor.data_type == TensorProto.INT64:
            values = numpy_helper.to_array(tensor).copy()
            if values.size > 1 and values[0] == size:
                values[0] = 0  # the size that comes in
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _convert(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    low, high = OPSETS
    if not low <= opset <= high:
        from onnx import version_converter

        try:
            with silence():
                model = version_converter.convert_version(model, 17 if opset < low else high)
        except Exception as error:
            raise ModelError(
                f"the model has opset {opset}, the training runtime reads {low} to {high}, and it cannot be converted: "
                f"export it with one of those"
            ) from error
    model.ir_version = min(MAX_IR, max(8, model.ir_version))
    return model


def _check_same(
    original: onnx.ModelProto, rewritten: onnx.ModelProto, inputs: Inputs, run: Run, fixed: int | None
) -> Arrays:
    """Compare outputs, and fill in the shapes that the loss needs; returns the outputs."""
    try:
        outputs = run_session(open_session(rewritten), run.feeds)
    except ModelError as error:
        if fixed is None:
            raise
        raise ModelError(
            f"the model takes {fixed} sample{'s' * (fixed > 1)} at once, and nothing that is known frees it: export it "
            "with a dynamic batch"
        ) from error
    few = next(Batching(fixed or run.count, fixed is not None, inputs).split([run]))
    expected = run_session(open_session(original), few.feeds)
    declared = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in original.graph.output}
    free = any(_is_free(spec) for spec in inputs.values())
    batched = any(spec.axis is not None for spec in inputs.values())
    for value in rewritten.graph.output:
        if value.name not in outputs:
            raise ModelError(f"output '{value.name}' is no tensor: training takes models whose outputs are tensors")
        found = outputs[value.name]
        axis = next((axis for axis, size in enumerate(found.shape) if size == run.count), None) if batched else None
        if batched and found.ndim and axis is None:
            raise ModelError(
                f"output '{value.name}' has shape {list(found.shape)} for {run.count} samples: the model's batch size "
                "is fixed inside it; export it with a dynamic batch"
            )
        first, same = (
            array if axis is None else array.take(range(few.count), axis) for array in (expected[value.name], found)
        )
        if relative_error(first, same) > _SAME:
            raise ModelError(f"output '{value.name}' changes when the model is prepared for training: please report it")
        _declare(value, found, axis, declared[value.name] if free else list(found.shape))
    return outputs


def _is_free(spec: InputSpec) -> bool:
    """Whether a size of an input beside the batch may differ from run to run."""
    return spec.sizes is None or any(
        not isinstance(size, int) for axis, size in enumerate(spec.sizes) if axis != spec.axis
    )


def _declare(value: onnx.ValueInfoProto, found: np.ndarray, batch: int | None, sizes: Sequence[int]) -> None:
    """The shape of an output; `sizes` are those that all runs have in common, 0 for others."""
    dims = value.type.tensor_type.shape.dim
    del dims[:]
    for axis, size in enumerate(sizes if len(sizes) == found.ndim else [0] * found.ndim):
        if axis == batch:
            dims.add().dim_param = "batch"
        elif size > 0:
            dims.add().dim_value = size
        else:
            dims.add().dim_param = f"{value.name}.{axis}"
    value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(found.dtype)


_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_AFFINE = {"BatchNormalization": (1, 2), "LayerNormalization": (1, 2), "PRelu": (1,)}
_VECTORS = _AFFINE | dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), (2,)) | {"BatchNormalization": (1, 2, 3, 4)}


def _parameters(model: onnx.ModelProto) -> tuple[tuple[str, ...], set[str], tuple[str, ...]]:
    """What is trained, what of it decays, and the running statistics."""
    stored = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    found: dict[str, bool] = {}
    statistics: dict[str, None] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name not in stored:
                continue
            if node.op_type in _WEIGHTED:
                found[name] = found.get(name, False) or place < 2
            elif place in _AFFINE.get(node.op_type, ()):
                found.setdefault(name, False)
            elif node.op_type == "BatchNormalization":
                statistics[name] = None
            elif node.op_type in ("Add", "Mul") and int(np.prod(stored[name].dims)) > 1:
                found.setdefault(name, False)
    return tuple(found), {name for name, weight in found.items() if weight}, tuple(statistics)


# Operators without a gradient, written with others that have one and compute the same.

_Emit = Callable[..., str]


def _rewrite_operators(model: onnx.ModelProto) -> None:
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        rewrite = _REWRITES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rewrite is None:
            nodes.append(node)
            if node.op_type == "LayerNormalization":  # its gradient wants the optional outputs
                node.output.extend(f"{node.output[0]}/{i}" for i in range(len(node.output), 3))
            continue
        count = 0

        def emit(op: str, *inputs: str, node: onnx.NodeProto = node, last: bool = False, **attributes: Any) -> str:
            nonlocal count
            count += 1
            name = node.output[0] if last else f"{node.output[0]}/{count}"
            nodes.append(helper.make_node(op, list(inputs), [name], name=f"{node.name or name}/{count}", **attributes))
            return name

        def number(value: float) -> str:
            name = f"trp.number.{value!r}"
            constants[name] = numpy_helper.from_array(np.array(value, np.float32), name)
            return name

        rewrite(node, emit, number)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants.values())


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    return next((float(helper.get_attribute_value(a)) for a in node.attribute if a.name == name), default)


def _dropout(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    emit("Identity", node.input[0], last=True)


def _hard_sigmoid(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    scaled = emit("Mul", node.input[0], number(_attribute(node, "alpha", 0.2)))
    shifted = emit("Add", scaled, number(_attribute(node, "beta", 0.5)))
    emit("Clip", shifted, number(0.0), number(1.0), last=True)


def _hard_swish(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    shifted = emit("Add", emit("Mul", node.input[0], number(1 / 6)), number(0.5))
    emit("Mul", node.input[0], emit("Clip", shifted, number(0.0), number(1.0)), last=True)


def _prelu(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    below = emit("Relu", emit("Neg", node.input[0]))
    emit("Sub", emit("Relu", node.input[0]), emit("Mul", below, node.input[1]), last=True)


def _elu(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    below = emit("Neg", emit("Relu", emit("Neg", node.input[0])))  # min(x, 0)
    curved = emit("Mul", emit("Sub", emit("Exp", below), number(1.0)), number(_attribute(node, "alpha", 1.0)))
    emit("Add", emit("Relu", node.input[0]), curved, last=True)


def _selu(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    alpha, gamma = _attribute(node, "alpha", 1.6732632423543772), _attribute(node, "gamma", 1.0507009873554805)
    below = emit("Neg", emit("Relu", emit("Neg", node.input[0])))
    curved = emit("Mul", emit("Sub", emit("Exp", below), number(1.0)), number(alpha))
    emit("Mul", emit("Add", emit("Relu", node.input[0]), curved), number(gamma), last=True)


def _softplus(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|): no overflow
    small = emit("Exp", emit("Neg", emit("Abs", node.input[0])))
    emit("Add", emit("Relu", node.input[0]), emit("Log", emit("Add", small, number(1.0))), last=True)


def _mish(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    small = emit("Exp", emit("Neg", emit("Abs", node.input[0])))
    softplus = emit("Add", emit("Relu", node.input[0]), emit("Log", emit("Add", small, number(1.0))))
    emit("Mul", node.input[0], emit("Tanh", softplus), last=True)


def _softsign(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    emit("Div", node.input[0], emit("Add", emit("Abs", node.input[0]), number(1.0)), last=True)


def _celu(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    alpha = _attribute(node, "alpha", 1.0)
    below = emit("Neg", emit("Relu", emit("Neg", node.input[0])))
    curved = emit("Sub", emit("Exp", emit("Mul", below, number(1 / alpha))), number(1.0))
    emit("Add", emit("Relu", node.input[0]), emit("Mul", curved, number(alpha)), last=True)


def _mean(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    total = node.input[0]
    for other in node.input[1:]:
        total = emit("Add", total, other)
    emit("Mul", total, number(1 / len(node.input)), last=True)


def _sum(node: onnx.NodeProto, emit: _Emit, number: Callable[[float], str]) -> None:
    first, *others = node.input
    for i, other in enumerate(others):
        first = emit("Add", first, other, last=i == len(others) - 1)
    if not others:
        emit("Identity", first, last=True)


_REWRITES: dict[str, Callable[[onnx.NodeProto, _Emit, Callable[[float], str]], None]] = {
    "Celu": _celu,
    "Dropout": _dropout,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Mean": _mean,
    "Mish": _mish,
    "PRelu": _prelu,
    "Selu": _selu,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Sum": _sum,
}
