"""What `compress` gives back."""

from __future__ import annotations

from dataclasses import dataclass

from trp_onnx.files.made import Made
from trp_onnx.planning import Plan
from trp_onnx.report import Report


@dataclass(frozen=True, repr=False)
class Compressed(Made):
    """A compressed network.

    Attributes:
        plan: What became of each layer.
        report: What was gained and lost.
    """

    plan: Plan
    report: Report

    def __repr__(self) -> str:
        return repr(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
