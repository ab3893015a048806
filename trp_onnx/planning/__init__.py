"""Which scheme and rank each layer gets, and why.

`options` lists what a layer could become and what that costs; `allocate` solves the budget over all
layers; `rules` reads the per-layer map; `plan` puts them together.
"""

from trp_onnx.planning.alignment import resolve_alignment
from trp_onnx.planning.damage import measure_damage
from trp_onnx.planning.plan import Decision, Plan, choose_schemes, make_plan, plan_at_ranks
from trp_onnx.planning.rules import LayerRule, read_rules

__all__ = [
    "Decision",
    "LayerRule",
    "Plan",
    "choose_schemes",
    "make_plan",
    "measure_damage",
    "plan_at_ranks",
    "read_rules",
    "resolve_alignment",
]
