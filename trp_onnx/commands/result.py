"""What `compress` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import onnx_ir as ir

from trp_onnx.files.paths import guard
from trp_onnx.files.staging import Staging, files_of
from trp_onnx.graph.model import open_model
from trp_onnx.job.network import ExternalData
from trp_onnx.planning import Plan
from trp_onnx.report import Report


@dataclass(frozen=True, repr=False)
class Compressed:
    """A compressed network.

    Attributes:
        model: The network; of a file, its weights are read when they are used.
        plan: What became of each layer.
        report: What was gained and lost.
        path: Its file; None where it is in memory.
    """

    model: ir.Model
    plan: Plan
    report: Report
    path: Path | None

    @classmethod
    def of(cls, report: Report, plan: Plan, path: Path, *, in_memory: bool) -> Compressed:
        """The result that was written to a path; read whole where the file is about to go."""
        model = open_model(path)
        if in_memory:
            ir.external_data.load_to_model(model)
        return cls(model, plan, report, None if in_memory else path)

    def save(self, out: str | PathLike[str], external_data: ExternalData = "auto") -> Path:
        """Write the network to a file, whole or not at all.

        Args:
            out: The file.
            external_data: Whether weights go into a file beside it, see `NetworkOptions`.

        Raises:
            UsageError: The place is the network's own file.
            OutputError: It cannot be written.
        """
        path = Path(out)
        guard(writes=files_of(path), reads=[self.path])
        with Staging(path, self.model, external_data) as staging:
            staging.save(self.model.clone())
            staging.publish()
        return path

    def __repr__(self) -> str:
        return repr(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
