"""How far to go: one target, what the outputs may lose, and a map of layers that goes before both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from trp_onnx.errors import UsageError
from trp_onnx.schema import conform

if TYPE_CHECKING:
    from trp_onnx.evaluation.metric import Asked
    from trp_onnx.planning.rules import Rule

_TARGETS = ("macs", "speedup", "energy", "vbmf")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How far to go: a target (one of four), what may be lost, or both. Without either, the outputs are kept.

    Attributes:
        macs: Keep at most this part of the network's MACs.
        speedup: Make it this many times as fast, as measured.
        max_drop: Lose at most so much by the metric, in its unit. Counted on samples held out of the data: alone it is
            as fast as can be within that, beside a target it refuses what loses more.
        energy: Discard at most this part of each layer's squared singular values, or with data of its outputs.
        vbmf: Take ranks from variational Bayesian matrix factorisation.
        metric: What is counted there, and on the test samples, see `evaluate`: top-1 where labels name classes,
            agreement with the original where there are none.
        rules: The map of layers and spaces; its first entry that matches one goes before the rest.

    Training that finds ranks itself takes `energy` and `macs` together.

    Raises:
        UsageError: Targets that contradict each other, or a value out of range.
    """

    macs: float | None = None
    speedup: float | None = None
    max_drop: float | None = None
    energy: float | None = None
    vbmf: bool = False
    metric: Asked | None = None
    rules: Sequence[Rule] = ()

    def __post_init__(self) -> None:
        conform(self, *_TARGETS, "max_drop")
        rules = tuple(self.rules) if isinstance(self.rules, Sequence) else (self.rules,)
        if not all(hasattr(rule, "matches") for rule in rules):
            raise UsageError("rules takes a list of LayerRule and SpaceRule; read_rules reads them from a file")
        object.__setattr__(self, "rules", rules)
        if len(self.targets) > 1 and self.targets != ("macs", "energy"):
            raise UsageError("give only one of --macs, --speedup, --energy and --vbmf")
        if self.energy is not None and not 0 <= self.energy < 1:
            raise UsageError(f"--energy is the part of the energy to discard, from 0 to below 1, not {self.energy}")
        if self.macs is not None and not 0 < self.macs < 1:
            raise UsageError(f"--macs is the part of the MACs to keep, between 0 and 1, not {self.macs}")
        if self.speedup is not None and not (self.speedup > 1 and isfinite(self.speedup)):
            raise UsageError(f"--speedup is how many times as fast, above 1, not {self.speedup}")
        if self.max_drop is not None and not 0 <= self.max_drop < 100:
            raise UsageError(f"--max-drop is what may be lost, from 0 to below 100, not {self.max_drop}")

    @property
    def targets(self) -> tuple[str, ...]:
        """Those of macs, speedup, energy and vbmf that are given."""
        return tuple(name for name in _TARGETS if getattr(self, name) is not None and getattr(self, name) is not False)

    @property
    def asked(self) -> bool:
        """Whether anything is said of how far to go."""
        return bool(self.targets or self.rules) or self.max_drop is not None

    @property
    def searched(self) -> bool:
        """Whether the fastest plan within a limit is searched for: nothing but what may be lost is said."""
        return not self.targets and (self.max_drop is not None or not self.rules)

    @property
    def budgeted(self) -> bool:
        """Whether all layers share a budget, and not each has a rule of its own."""
        return self.searched or self.macs is not None or self.speedup is not None

    @property
    def timed(self) -> bool:
        """Whether ranks are chosen by time."""
        return self.searched or self.speedup is not None
