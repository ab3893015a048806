"""The device that a network is compressed for."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

from trp_onnx.errors import UsageError

if TYPE_CHECKING:
    from trp_onnx.latency.table import LatencyTable


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device that a network is compressed for.

    Attributes:
        threads: Intra-op threads that the speed-up is meant for.
        latency_table: What `profile` measured there, or its file; measured here where not given.

    Raises:
        UsageError: `threads` is below 1.
    """

    threads: int = 1
    latency_table: LatencyTable | str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"--threads is a whole number from 1, not {self.threads}")
