"""What layers may become, and how their factors are fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from trp_onnx.errors import UsageError
from trp_onnx.schema import conform

SchemeChoice = Literal["auto", "spatial", "spatial-mirror", "channel", "channel-mirror", "tucker2", "svd"]
SCHEME_CHOICES: tuple[str, ...] = get_args(SchemeChoice)
PlanBy = Literal["auto", "weights", "outputs"]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What layers may become, and how their factors are fitted.

    Attributes:
        scheme: How layers are split; auto lets every layer choose.
        align: Ranks are multiples of this many channels; auto takes the step of the latency table, or the SIMD block
            of this CPU.
        plan_by: What a budget makes least: layer errors (weights), or what they do to the outputs, on the data; auto
            is outputs where there is data that nothing is trained on.
        asymmetric: Fit each layer, those that stay dense too, to make up for those compressed before it; needs data.
        widths: Whether channels may be removed as well as ranks reduced, where there is data and a budget; where not
            said, they may if the scheme is auto.

    Raises:
        UsageError: A value that is none of these.
    """

    scheme: SchemeChoice = "auto"
    align: int | Literal["auto"] = "auto"
    plan_by: PlanBy = "auto"
    asymmetric: bool = False
    widths: bool | None = None

    @property
    def cuts(self) -> bool:
        """Whether channels may be removed."""
        return self.scheme == "auto" if self.widths is None else self.widths

    def __post_init__(self) -> None:
        conform(self, "align", "asymmetric", "widths")
        if self.scheme not in SCHEME_CHOICES:
            raise UsageError(f"unknown scheme '{self.scheme}'; there are {', '.join(SCHEME_CHOICES)}")
        if self.plan_by not in get_args(PlanBy):
            raise UsageError(f"--plan-by is auto, weights or outputs, not '{self.plan_by}'")
        if self.align != "auto" and self.align < 1:
            raise UsageError(f"--align takes a positive whole number or auto, not '{self.align}'")
