"""Models in int8 as `quantize` writes them, to be timed.

What kernels take depends on shapes, not on values: one run calibrates, and no layer is left in float for what int8 does
to it.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from trp_onnx.graph.inputs import Run, inputs_of
from trp_onnx.graph.model import open_model, write_model
from trp_onnx.graph.session import Arrays
from trp_onnx.job.device import Precision
from trp_onnx.job.network import Shapes
from trp_onnx.passes import CleanUpPass, FoldWeightsPass
from trp_onnx.passes.calibrated import Calibrated
from trp_onnx.passes.network import Network


def in_precision(model: ir.Model, precision: Precision, feeds: Arrays) -> ir.Model:
    """A normalised model as it is timed; its nodes are called as its layers are.

    Args:
        model: In float; not changed.
        precision: Which one; float is the model itself.
        feeds: What it runs on, and other arrays.

    Raises:
        ModelError: The quantiser does not take it.
    """
    if precision == "float":
        return model
    copy = model.clone()
    for node in copy.graph:
        node.name = node.name or node.outputs[0].name
    FoldWeightsPass()(copy)
    CleanUpPass()(copy)
    run = Run({name: feeds[name] for name in inputs_of(copy)}, 1)
    return ir.from_proto(Calibrated(copy, [run], signed=precision == "int8-signed").quantised())


def file_in_precision(source: Path, path: Path, precision: Precision, feeds: Arrays, shapes: Shapes | None) -> Path:
    """The same of a file: itself, or another one, which is written.

    Raises:
        ModelError: The quantiser does not take it.
        OutputError: It cannot be written.
    """
    if precision == "float":
        return source
    write_model(in_precision(Network.of(source, open_model(source), shapes).normal, precision, feeds), path)
    return path
