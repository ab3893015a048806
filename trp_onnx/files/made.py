"""A network that a command made, in a file or in memory."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from trp_onnx.errors import UsageError
from trp_onnx.files.paths import guard
from trp_onnx.files.staging import Staging, files_of
from trp_onnx.job.network import ExternalData
from trp_onnx.schema import brief, path_of

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, repr=False)
class Made:
    """A network that a command made.

    Attributes:
        model: The network; of a file, its weights are read when they are used.
        path: Its file; None where it is in memory.
    """

    model: ir.Model
    path: Path | None

    def save(self, out: str | PathLike[str], external_data: ExternalData = "auto") -> Path:
        """Write the network to a file, whole or not at all.

        Args:
            out: The file.
            external_data: Whether weights go into a file beside it, see `NetworkOptions`.

        Raises:
            UsageError: The place is the network's own file, or an argument makes no sense.
            ModelError: The file that holds its weights is gone.
            OutputError: It cannot be written.
        """
        path = path_of(out, "the output")
        if external_data not in get_args(ExternalData):
            raise UsageError(f"external_data is auto, yes or no, not {brief(external_data)}")
        guard(writes=files_of(path), reads=[self.path])
        with Staging(path, self.model, external_data) as staging:
            staging.save(self.model.clone())
            staging.publish()
        return path


def opened(path: Path, *, in_memory: bool) -> ir.Model:
    """A model that was written; read whole where its file is about to go."""
    import onnx_ir as ir

    from trp_onnx.graph.model import open_model

    model = open_model(path)
    if in_memory:
        ir.external_data.load_to_model(model)
    return model
