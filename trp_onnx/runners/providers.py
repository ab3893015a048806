"""Execution providers by name, and the session each of them wants.

Above one thread the pool sleeps between runs instead of spinning: a spinning pool takes the cores of every other
session. XNNPACK and OpenVINO have pools of their own and get the threads instead of the session. QNN off a Qualcomm
chip is the simulator of its HTP: what it takes and what comes out is what the chip does, how long it takes is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trp_onnx.errors import UsageError

CPU = "CPUExecutionProvider"

IM2COL = "cpu-im2col"
"""The CPU without its blocked layout: the kernels that run on ARM, in WebAssembly and in an `.ort` file."""


@dataclass(frozen=True)
class Provider:
    """What a session on a provider is made with.

    Attributes:
        name: The runtime's name of it.
        options: Its own options.
        threads: Which of its options takes the number of threads; None where the session's pool is used.
        blocked: Whether convolutions may run in blocked layout.
    """

    name: str
    options: dict[str, str] = field(default_factory=dict)
    threads: str | None = None
    blocked: bool = True


PROVIDERS = {
    "cpu": Provider(CPU),
    IM2COL: Provider(CPU, blocked=False),
    "xnnpack": Provider("XnnpackExecutionProvider", threads="intra_op_num_threads"),
    "nnapi": Provider("NnapiExecutionProvider"),
    "coreml": Provider("CoreMLExecutionProvider", {"ModelFormat": "MLProgram", "RequireStaticInputShapes": "1"}),
    "qnn": Provider("QNNExecutionProvider", {"backend_type": "htp"}),
    "openvino": Provider("OpenVINOExecutionProvider", {"device_type": "CPU"}, threads="num_of_threads"),
}


def check_provider(name: str) -> Provider:
    """What is known of a provider.

    Raises:
        UsageError: Nothing.
    """
    if name not in PROVIDERS:
        raise UsageError(f"unknown execution provider '{name}'; there are {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def setting_for(name: str, threads: int) -> dict[str, Any]:
    """The setting that a worker opens its sessions with.

    Raises:
        UsageError: An unknown provider.
    """
    provider = check_provider(name)
    own = {} if provider.threads is None else {provider.threads: str(threads)}
    pool = threads if provider.threads is None else 1
    config = {"session.intra_op.allow_spinning": "0"} if threads > 1 else {}
    return {
        "provider": provider.name, "options": provider.options | own, "config": config, "threads": pool,
        "blocked": provider.blocked,
    }  # fmt: skip
