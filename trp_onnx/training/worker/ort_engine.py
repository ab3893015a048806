"""The training runtime, onnxruntime-training 1.19.2: what is bound to that version is here and in `ort_rewrites`.

`training_graph` turns a model with a loss into one graph that computes the loss, every gradient and the
updated running statistics, through `onnxruntime.training.artifacts`. `Session` runs such a graph in
the runtime's own session, with every tensor bound once to memory of ours: weights are read and gradients
written in place, nothing is copied from step to step. `OrtEngine` puts them together.

The artifacts come with buffers that add gradients up inside the graph and a state that holds the weights
behind an API of its own; both are taken out, because the optimizer, the projection and the all-reduce
want one flat buffer. Only worker processes import this module: see `isolated_runtime`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trp_onnx.errors import ModelError
from trp_onnx.graph.inputs import Run
from trp_onnx.graph.session import Arrays
from trp_onnx.planning.alignment import simd_block
from trp_onnx.training.losses import LOSS, OutputLoss, add_loss
from trp_onnx.training.worker.buffers import Buffers
from trp_onnx.training.worker.ort_rewrites import speed_up

VERSION = "1.19.2"
_QUIET = 4


@dataclass(frozen=True)
class TrainingGraph:
    """A graph with its backward half.

    Attributes:
        model: Inputs: those of the original with the loss's targets, and every parameter. Outputs: `loss`,
            the gradients, the updated statistics.
        gradients: Output that holds the gradient, by parameter.
        updates: Output that holds the new value, by running statistic.
    """

    model: onnx.ModelProto
    gradients: dict[str, str]
    updates: dict[str, str]


def training_graph(model: onnx.ModelProto, parameters: Sequence[str], statistics: Sequence[str]) -> TrainingGraph:
    """Build the backward half of a model whose only output is its loss.

    Args:
        model: With weights as initializers.
        parameters: Initializers that need a gradient.
        statistics: Running means and variances of BatchNormalization.

    Raises:
        ModelError: The runtime cannot differentiate the model.
    """
    artifacts = _import_artifacts()
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifacts.generate_artifacts(
                model, requires_grad=list(parameters), frozen_params=list(statistics), artifact_directory=folder
            )
        except Exception as error:
            raise ModelError(_why_no_gradient(str(error), model)) from error
        built = onnx.load(Path(folder) / "training_model.onnx")
    return _expose(built, set(parameters), set(statistics))


def _import_artifacts() -> Any:
    """`onnxruntime.training.artifacts` without its package, whose __init__ would import torch."""
    import onnxruntime

    if onnxruntime.__version__ != VERSION:
        raise ModelError(f"the training worker runs in onnxruntime {onnxruntime.__version__}, it needs {VERSION}")
    name = "onnxruntime.training"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
        package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = package
    return importlib.import_module("onnxruntime.training.artifacts")


def _expose(model: onnx.ModelProto, parameters: set[str], statistics: set[str]) -> TrainingGraph:
    """Take the accumulators out; gradients and new statistics become outputs."""
    gradients: dict[str, str] = {}
    updates: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type.startswith("InPlaceAccumulator"):
            buffer, gradient = node.input[:2]
            gradients[buffer.removesuffix("_grad.accumulation.buffer")] = gradient
            continue
        if node.op_type == "BatchNormInternal":
            for source, target in zip(node.input[3:5], node.output[1:3], strict=True):
                updates[source] = target
        nodes.append(node)
    unknown = set(gradients) - parameters | set(updates) - statistics
    if unknown:
        raise ModelError(f"the training runtime names a gradient after '{min(unknown)}', which is no parameter")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    wanted = {name for node in nodes for name in node.input}
    inputs = [value for value in model.graph.input if value.name in wanted]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    loss = model.graph.output[0]
    del model.graph.output[:]
    model.graph.output.append(loss)
    for name in (*gradients.values(), *updates.values()):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return TrainingGraph(model, gradients, updates)


def _providers() -> list[str]:
    import onnxruntime as ort

    cuda = "CUDAExecutionProvider"
    return [cuda, "CPUExecutionProvider"] if cuda in ort.get_available_providers() else ["CPUExecutionProvider"]


class Session:
    """A graph ready to run on bound memory."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Load the graph, on one thread: parallelism is over processes.

        Raises:
            ModelError: The runtime refuses it.
        """
        import onnxruntime as ort

        ort.set_default_logger_severity(_QUIET)
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=_providers())
        except Exception as error:
            raise ModelError(f"the training runtime cannot load the model: {_first_line(error)}") from error
        self._binding = self._session.io_binding()
        self._held: dict[str, np.ndarray] = {}
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def bind_inputs(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Read inputs from these arrays from now on; contiguous, and kept alive here."""
        for name, array in arrays.items():
            if name in self.inputs:
                assert array.flags.c_contiguous
                self._held[name] = array
                self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def bind_outputs(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write outputs to these arrays from now on."""
        for name, array in arrays.items():
            assert array.flags.c_contiguous
            self._held[name] = array
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def allocate_outputs(self, names: Sequence[str]) -> None:
        """Let the runtime allocate these outputs; `fetch` reads them."""
        for name in names:
            self._binding.bind_output(name, "cpu")

    def run(self) -> None:
        """Run once.

        Raises:
            ModelError: The run failed.
        """
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise ModelError(f"the training runtime failed: {_first_line(error)}") from error

    def fetch(self) -> Arrays:
        """A copy of every output, by name."""
        values = self._binding.get_outputs()
        return dict(zip(self.outputs, (value.numpy() for value in values), strict=True))

    def run_on(self, run: Run) -> Arrays:
        """A copy of every output for some samples; a model with one input may call it as it likes."""
        alone = len(run.feeds) == len(self.inputs) == 1
        self.bind_inputs(dict(zip(self.inputs, run.feeds.values(), strict=True)) if alone else run.feeds)
        self.allocate_outputs(self.outputs)
        self.run()
        return self.fetch()


class OrtEngine:
    """See `Engine`."""

    def network(self, model: onnx.ModelProto) -> Session:
        """See `Engine`."""
        return Session(model)

    def learner(
        self, model: onnx.ModelProto, losses: Sequence[OutputLoss], temperature: float, buffers: Buffers
    ) -> OrtLearner:
        """See `Engine`."""
        return OrtLearner(model, losses, temperature, buffers)


class OrtLearner:
    """See `Learner`."""

    def __init__(
        self, model: onnx.ModelProto, losses: Sequence[OutputLoss], temperature: float, buffers: Buffers
    ) -> None:
        """See `Engine.learner`."""
        with_loss = onnx.ModelProto()
        with_loss.CopyFrom(model)
        add_loss(with_loss, losses, temperature)
        gradients, updates = buffers.found_by_name()
        graph = training_graph(with_loss, tuple(gradients), tuple(updates))
        if set(graph.updates) != set(updates):
            raise ModelError("the training runtime does not update every running statistic")
        has_cuda = len(_providers()) > 1
        speed_up(graph.model, {name: view.shape for name, view in gradients.items()}, 1 if has_cuda else simd_block())
        self._session = Session(graph.model)
        self._session.bind_inputs(buffers.tensors)
        self._session.bind_outputs(
            {output: gradients[name] for name, output in graph.gradients.items()}
            | {output: updates[name] for name, output in graph.updates.items()}
            | {LOSS: buffers.found[-1:].reshape(())}
        )

    def differentiate(self, feeds: Arrays) -> None:
        """See `Learner`."""
        self._session.bind_inputs(feeds)
        self._session.run()


def _why_no_gradient(text: str, model: onnx.ModelProto) -> str:
    missing = re.search(r"has not been registered: (\w+)", text)
    if missing:
        op = missing.group(1)
        nodes = [node.name or node.output[0] for node in model.graph.node if node.op_type == op]
        shown = f"'{nodes[0]}'" + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else "") if nodes else "a node"
        return (
            f"the training runtime has no gradient for {op} ({shown}): export the model with other operators there, "
            "or compress it without training"
        )
    reason = re.sub(r"^.*(?:was false\.|\) const)\s*", "", text.strip().replace("\n", " "))
    return f"the training runtime cannot differentiate the model: {reason[:300] or 'it does not say why'}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
