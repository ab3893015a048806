"""How a network is opened, and how samples become its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trp_onnx.data import Data, Preprocessing
    from trp_onnx.evaluation.evaluate import Said


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """How a network is opened, and how samples become its inputs.

    Attributes:
        input_shapes: Shapes for inputs with dynamic sizes, by name. A symbolic batch counts as 1.
        inputs: Samples to verify on, whatever `open_data` takes; those of the data, or generated inputs, otherwise.
        preprocessing: How samples become inputs.
        output_kinds: What outputs are, where that cannot be seen: {"logits": "scores:2"}, see `evaluate`.
        simplify: Whether to run onnx-simplifier first.
    """

    input_shapes: Mapping[str, Sequence[int]] | None = None
    inputs: Data | None = None
    preprocessing: Preprocessing | None = None
    output_kinds: Said = ()
    simplify: bool = True
