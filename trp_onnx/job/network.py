"""How a network is opened and written, and how samples become its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from trp_onnx.errors import UsageError
from trp_onnx.schema import Count, conform

if TYPE_CHECKING:
    from trp_onnx.data import Data, Preprocessing
    from trp_onnx.evaluation.evaluate import Said

ExternalData = Literal["auto", "yes", "no"]
Shapes = Mapping[str, Sequence[Count]]
"""Shapes of inputs, by name."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """How a network is opened and written, and how samples become its inputs.

    Attributes:
        input_shapes: Shapes for inputs with dynamic sizes, by name. A symbolic batch counts as 1.
        inputs: Samples to verify on, whatever `open_data` takes; those of the data, or generated inputs, otherwise.
        preprocessing: How samples become inputs.
        output_kinds: What outputs are, where that cannot be seen: {"logits": "scores:2"}, see `evaluate`.
        simplify: Whether to run onnx-simplifier first.
        external_data: Whether weights go into a file of their own beside the model: auto puts up to 1.5 GB into the
            model's own file; no refuses what does not fit there.

    Raises:
        UsageError: A value that is none of these.
    """

    input_shapes: Shapes | None = None
    inputs: Data | None = None
    preprocessing: Preprocessing | None = None
    output_kinds: Said = ()
    simplify: bool = True
    external_data: ExternalData = "auto"

    def __post_init__(self) -> None:
        conform(self, "input_shapes", "simplify")
        if self.external_data not in get_args(ExternalData):
            raise UsageError(f"--external-data is auto, yes or no, not '{self.external_data}'")
