"""Simplify with onnx-simplifier, which never sees the weights.

The big tensors are taken out (they become inputs for the while), the skeleton is simplified, and they are
put back: a model of any size costs kilobytes, nothing that is constant by design (a weight behind
DequantizeLinear, say) is unpacked, and node names survive. The result is checked: both skeletons run in
ONNX Runtime on the same random inputs, with the real weights lent to them without a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from trp_onnx.graph.constants import let_go
from trp_onnx.graph.session import feeds_for, relative_error, run_model
from trp_onnx.graph.sizes import real_inputs
from trp_onnx.process.silence import silence

logger = logging.getLogger(__name__)

BIG_TENSOR = 1024
"""Bytes from which a tensor is a weight, not a shape or a scalar."""

_LARGEST_FOLDED = "1MB"
"""A Tile or ConstantOfShape whose result is larger stays as it is: a small file shall not become a large one."""

MOST_NODES = 20_000
"""Nodes of a model that is simplified: above, the simplifier's and the runtime's time grows with their square."""

TOLERANCE = 1e-3
"""Largest relative difference of an output (maximum norm) that reordering float32 sums may explain."""


class SimplifyPass(ir.passes.FunctionalPass):
    """onnx-simplifier on the skeleton; the model itself comes back where the result does not hold."""

    def __init__(self, input_shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        """`input_shapes`: shapes for inputs with dynamic sizes, used for the check only."""
        super().__init__()
        self.input_shapes = input_shapes
        self.note: str | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; the result is a new model that shares its tensors with the old one."""
        import onnxsim

        copy = model.clone()
        weights = _take_out(copy)
        before = ir.to_proto(copy)
        try:
            with silence():
                after, _ = onnxsim.simplify(before, skip_fuse_bn=True, tensor_size_threshold=_LARGEST_FOLDED)
        except Exception as error:  # its errors come from C++ under many names
            self.note = f"not simplified: onnx-simplifier failed ({_first_line(error)})"
            return ir.passes.PassResult(model.clone(), modified=False)
        feeds = feeds_for(model, self.input_shapes)
        lent = {name: tensor.numpy() for name, tensor in weights.items()}
        try:
            expected = run_model(before, {**feeds, **lent})
            actual = run_model(after, {**feeds, **lent})
            lent.clear()
            for tensor in weights.values():
                let_go(tensor)
        except Exception as error:
            self.note = f"not simplified: its check could not run ({_first_line(error)})"
            return ir.passes.PassResult(model.clone(), modified=False)
        worst = max((relative_error(a, actual[name]) for name, a in expected.items()), default=0.0)
        if not worst <= TOLERANCE:
            self.note = f"not simplified: the simplified model's outputs differ by {worst:.1e}"
            return ir.passes.PassResult(model.clone(), modified=False)

        simplified = ir.from_proto(after)
        _put_back(simplified, weights)
        _restore_face(simplified, model)
        logger.debug("simplified %d nodes to %d", len(model.graph), len(simplified.graph))
        return ir.passes.PassResult(simplified, modified=True)


def _take_out(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Turn every big initializer into an input; returns the tensors by name."""
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < BIG_TENSOR:
            continue
        weights[name] = tensor
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        del model.graph.initializers[name]
        value.const_value = None
        model.graph.inputs.append(value)
    return weights


def _put_back(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> None:
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        if value.uses() or value.is_graph_output():
            value.const_value = weights[value.name or ""]
            model.graph.register_initializer(value)


def _restore_face(model: ir.Model, original: ir.Model) -> None:
    """Inputs, outputs, opsets and metadata are the owner's, not the simplifier's."""
    model.ir_version = original.ir_version
    model.producer_name, model.producer_version = original.producer_name, original.producer_version
    model.domain, model.model_version = original.domain, original.model_version
    model.doc_string = original.doc_string
    model.metadata_props.clear()
    model.metadata_props.update(original.metadata_props)
    _restore_notes(model.graph, original.graph)
    model.graph.name, model.graph.doc_string = original.graph.name, original.graph.doc_string
    for opset, version in original.opset_imports.items():
        model.opset_imports.setdefault(opset, version)
    for ours, theirs in (
        (real_inputs(model), real_inputs(original)),
        (model.graph.outputs, original.graph.outputs),
    ):
        for new, old in zip(ours, theirs, strict=True):
            new.shape, new.type, new.doc_string = old.shape, old.type, old.doc_string


def _restore_notes(graph: ir.Graph, original: ir.Graph) -> None:
    """Metadata of nodes, which the simplifier drops, by the names that it keeps."""
    noted = {node.name: node for node in ir.traversal.RecursiveGraphIterator(original) if node.metadata_props}
    for node in ir.traversal.RecursiveGraphIterator(graph) if noted else ():
        old = noted.get(node.name)
        if old is not None and old.op_type == node.op_type:
            node.metadata_props.update(old.metadata_props)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
