"""All that one compression is asked for; what contradicts itself is refused here, before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from trp_onnx.errors import UsageError
from trp_onnx.job.device import Device
from trp_onnx.job.goal import Goal
from trp_onnx.job.network import NetworkOptions
from trp_onnx.job.search_space import SearchSpace
from trp_onnx.job.training import Training
from trp_onnx.schema import check_type, held

if TYPE_CHECKING:
    from trp_onnx.data import Data


Minutes = Annotated[float, Meta(gt=0, le=10**6)]


@dataclass(frozen=True)
class Job:
    """All that one compression is asked for; see `compress`.

    Raises:
        UsageError: Its parts contradict each other.
    """

    goal: Goal
    data: Data | None = None
    test: Data | None = None
    search: SearchSpace = field(default_factory=SearchSpace)
    device: Device = field(default_factory=Device)
    training: Training | None = None
    network: NetworkOptions = field(default_factory=NetworkOptions)
    recover: float | None = None

    def __post_init__(self) -> None:
        self._check_types()
        trained, goal = self.training is not None, self.goal
        if self.recover is not None and (trained or self.data is None):
            raise UsageError("--recover learns from the original on --data, without --train")
        if (trained or goal.max_drop is not None or self.search.plan_by == "outputs") and self.data is None:
            raise UsageError("training, --max-drop and planning by outputs need data: give --data")
        if goal.metric is not None and self.test is None and self.data is None:
            raise UsageError("--metric judges by samples: give --test or --data")
        if trained and not isinstance(goal.metric, str | None):
            raise UsageError("training: its workers take a metric by name, 'top-1' or 'pkg.module:function'")
        if self.search.asymmetric and (trained or self.data is None):
            raise UsageError("--asymmetric fits factors to --data, without --train")
        if trained and any(rule.of_spaces for rule in goal.rules):
            raise UsageError("training keeps all channels: take the [[space]] entries out of the configuration")
        if trained and goal.max_drop is not None:
            raise UsageError(
                "--max-drop chooses among plans that need no training; with --train give --speedup or --macs"
            )
        if not trained and len(goal.targets) > 1:
            raise UsageError("give only one of --macs, --speedup, --energy and --vbmf")

    def _check_types(self) -> None:
        for name, kind in (("goal", Goal), ("search", SearchSpace), ("device", Device), ("network", NetworkOptions)):
            check_type(getattr(self, name), kind, name)
        if self.training is not None:
            check_type(self.training, Training, "training")
        held(self.recover, Minutes | None, "recover")

    @property
    def by_outputs(self) -> bool:
        """Whether errors are weighed with what they do to the outputs."""
        fitted = self.data is not None and self.training is None
        return self.search.plan_by == "outputs" or (self.search.plan_by == "auto" and fitted and self.goal.budgeted)

    def folder(self, out: Path) -> Path | None:
        """The run folder of the training or the recovery, where there is one."""
        if self.training is None and self.recover is None:
            return None
        given = None if self.training is None else self.training.run
        return Path(given) if given is not None else out.with_name(out.name + ".trp-run")

    @property
    def searched(self) -> bool:
        """Whether the fastest plan within a limit is searched for."""
        return self.training is None and self.goal.searched

    @property
    def timed(self) -> bool:
        """Whether a latency table is needed, or given."""
        device = self.device
        return self.searched or self.goal.speedup is not None or device.int8 or device.latency_table is not None
