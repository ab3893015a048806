"""Which scheme and rank each layer gets, and why.

`options` lists what a layer could become and what that costs; `allocate` solves the budget over all
layers; `rules` reads the per-layer map; `plan` puts them together.
"""

from trp_onnx.planning.alignment import resolve_alignment
from trp_onnx.planning.plan import Decision, Plan, make_plan
from trp_onnx.planning.rules import LayerRule, read_rules

__all__ = ["Decision", "LayerRule", "Plan", "make_plan", "read_rules", "resolve_alignment"]
