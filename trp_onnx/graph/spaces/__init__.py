"""Spaces: channels, hidden units and dimensions of heads that can be removed from a whole network."""

from trp_onnx.graph.spaces.find import find_spaces
from trp_onnx.graph.spaces.space import Consumer, Count, Part, Space, outputs_of

__all__ = ["Consumer", "Count", "Part", "Space", "find_spaces", "outputs_of"]
