"""Simplify with onnx-simplifier, which never sees the weights.

The big tensors are taken out (they become inputs for the while), the skeleton is simplified, and they are
put back: a model of any size costs kilobytes, nothing that is constant by design (a weight behind
DequantizeLinear, say) is unpacked, and node names survive.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import onnx_ir as ir

from trp_onnx.graph.difference import take_weights_out
from trp_onnx.graph.sizes import real_inputs
from trp_onnx.process.silence import silence

logger = logging.getLogger(__name__)

_LARGEST_FOLDED = "1MB"
"""A Tile or ConstantOfShape whose result is larger stays as it is: a small file shall not become a large one."""

MOST_NODES = 20_000
"""Nodes of a model that is simplified: above, the simplifier's and the runtime's time grows with their square."""


class SimplifyPass(ir.passes.FunctionalPass):
    """onnx-simplifier on the skeleton; the result is a new model that shares its tensors with the old one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run.

        Raises:
            PassError: The simplifier fails, or would take too long.
        """
        import onnxsim

        if len(model.graph) > MOST_NODES:
            raise ir.passes.PassError(f"onnx-simplifier takes too long for {len(model.graph)} nodes")
        skeleton = model.clone()
        weights = take_weights_out(skeleton)
        try:
            with silence():
                after, _ = onnxsim.simplify(
                    ir.to_proto(skeleton), skip_fuse_bn=True, tensor_size_threshold=_LARGEST_FOLDED
                )
        except Exception as error:  # its errors come from C++ under many names
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ir.passes.PassError(f"onnx-simplifier failed ({line})") from error
        simplified = ir.from_proto(after)
        _put_back(simplified, weights)
        _restore_face(simplified, model)
        logger.debug("simplified %d nodes to %d", len(model.graph), len(simplified.graph))
        return ir.passes.PassResult(simplified, modified=True)


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
