"""Which scheme and rank each layer gets, and why.

`rules` reads the per-layer map; `options` lists what a layer could become and what that costs; `select` decides
on one layer, `allocate` on all within a budget; `planner` puts them together to a `plan`. `closed_loop` and
`search` make plans again, by what their files were measured to do.
"""

from trp_onnx.planning.alignment import resolve_alignment
from trp_onnx.planning.closed_loop import plan_for_speedup
from trp_onnx.planning.damage import Cuts, Level, measure_damage, measure_space_damage
from trp_onnx.planning.left import left_by_budgets
from trp_onnx.planning.moved import Move
from trp_onnx.planning.options import Evidence
from trp_onnx.planning.plan import Decision, Plan, SpaceDecision
from trp_onnx.planning.planner import Planner
from trp_onnx.planning.rules import LayerRule, SpaceRule, plan_to_toml, read_rules
from trp_onnx.planning.search import Candidate, fastest_within
from trp_onnx.planning.trained import choose_schemes, plan_at_ranks

__all__ = [
    "Candidate",
    "Cuts",
    "Decision",
    "Evidence",
    "LayerRule",
    "Level",
    "Move",
    "Plan",
    "Planner",
    "SpaceDecision",
    "SpaceRule",
    "choose_schemes",
    "fastest_within",
    "left_by_budgets",
    "measure_damage",
    "measure_space_damage",
    "plan_at_ranks",
    "plan_for_speedup",
    "plan_to_toml",
    "read_rules",
    "resolve_alignment",
]
