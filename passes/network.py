"""A network as every command works on it: opened, normalised, its layers found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from trp_onnx.data import Data
from trp_onnx.data.feeding import read_inputs
from trp_onnx.graph.layers import Layer, find_layers, shapes_of
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import Arrays, feeds_for
from trp_onnx.graph.sizes import Shape, sizes_from
from trp_onnx.job.network import Shapes
from trp_onnx.passes.normalise import normalise
from trp_onnx.process.memory import uncollected
from trp_onnx.schema import held


@dataclass
class Network:
    """A network.

    Attributes:
        source: Its file.
        original: As it was opened; nothing changes it.
        normal: Normalised; whoever factorises it does so in place.
        layers: Of `normal`.
        input_shapes: Sizes of dynamic inputs: given, or those of samples.
        shapes: Of the values of `normal`, see `shapes_of`.
        given: Inputs that it is to run on, where there are any.
    """

    source: Path
    original: ir.Model
    normal: ir.Model
    layers: list[Layer]
    input_shapes: Shapes | None
    shapes: Mapping[ir.Value, Shape] = field(repr=False)
    given: Arrays | None = field(default=None, repr=False)

    @classmethod
    @uncollected()
    def of(
        cls,
        source: Path,
        original: ir.Model,
        input_shapes: Shapes | None = None,
        *,
        simplify: bool = True,
        fold_batch_norm: bool = True,
    ) -> Network:
        """Normalise an open model.

        Args:
            source: Its file.
            original: The model.
            input_shapes: Sizes of dynamic inputs.
            simplify: Whether to run onnx-simplifier.
            fold_batch_norm: Whether to fold BatchNormalization; training keeps it.

        Raises:
            ModelError: See `normalise`; or a weight holds NaN or infinity.
        """
        normal = normalise(original.clone(), input_shapes, simplify=simplify, fold_batch_norm=fold_batch_norm)
        shapes = shapes_of(normal, input_shapes)
        return cls(source, original, normal, find_layers(normal, input_shapes, shapes), input_shapes, shapes)

    @classmethod
    @uncollected()
    def open(
        cls, source: Path, input_shapes: Shapes | None = None, inputs: Data | None = None, *, simplify: bool = True
    ) -> Network:
        """Open a file.

        Args:
            source: The file.
            input_shapes: Sizes of dynamic inputs.
            inputs: Samples whose sizes count, and on which it is to run.
            simplify: Whether to run onnx-simplifier.

        Raises:
            ModelError: It cannot be read, or see `of`.
            DataError: The inputs cannot be read.
            UsageError: Their sizes contradict `input_shapes`.
        """
        input_shapes = held(input_shapes, Shapes | None, "input_shapes")
        original = open_model(source)
        given = None if inputs is None else read_inputs(original, inputs)
        if given is not None:
            input_shapes = sizes_from(original, given, input_shapes)
        network = cls.of(source, original, input_shapes, simplify=simplify)
        network.given = given
        return network

    def feeds(self) -> Arrays:
        """What it runs on: the inputs that are given, else generated ones."""
        return feeds_for(self.normal, self.input_shapes) if self.given is None else self.given
