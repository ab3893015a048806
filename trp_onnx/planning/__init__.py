"""Which scheme and rank each layer gets, and why.

`options` lists what a layer could become and what that costs; `allocate` solves the budget over all
layers; `rules` reads the per-layer map; `plan` puts them together.
"""

from trp_onnx.planning.alignment import resolve_alignment
from trp_onnx.planning.damage import measure_damage
from trp_onnx.planning.options import Evidence
from trp_onnx.planning.plan import Decision, Plan, Planner, check_rule, choose_schemes, plan_at_ranks
from trp_onnx.planning.rules import LayerRule, plan_to_toml, read_rules
from trp_onnx.planning.search import Candidate, fastest_within

__all__ = [
    "Candidate",
    "Decision",
    "Evidence",
    "LayerRule",
    "Plan",
    "Planner",
    "check_rule",
    "choose_schemes",
    "fastest_within",
    "measure_damage",
    "plan_at_ranks",
    "plan_to_toml",
    "read_rules",
    "resolve_alignment",
]
