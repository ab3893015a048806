"""The device that a network is compressed for."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Literal, get_args

from trp_onnx.errors import UsageError
from trp_onnx.schema import conform

if TYPE_CHECKING:
    from trp_onnx.latency.table import LatencyTable

Architecture = Literal["any", "arm", "amd64"]

Precision = Literal["float", "int8", "int8-signed"]
"""In what a network runs; signed where its activations are as well as its weights."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device that a network is made for.

    Attributes:
        threads: Intra-op threads that the speed-up is meant for.
        target: What int8 is made for: activations are signed for arm, as its kernels prefer.
        int8: Whether the network is to be quantised afterwards: times are those of what `quantize` will make of it.
        latency_table: What `profile` measured there, or its file; measured here where not given.

    Raises:
        UsageError: `threads` is below 1, or there is no such target.
    """

    threads: int = 1
    target: Architecture = "any"
    int8: bool = False
    latency_table: LatencyTable | str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        conform(self, "threads", "int8")
        if self.threads < 1:
            raise UsageError(f"--threads is a whole number from 1, not {self.threads}")
        if self.target not in get_args(Architecture):
            raise UsageError(f"--target is {', '.join(get_args(Architecture))}, not '{self.target}'")

    @property
    def precision(self) -> Precision:
        """In what the network is to run."""
        if not self.int8:
            return "float"
        return "int8-signed" if self.target == "arm" else "int8"
