"""Sessions made to be timed: bound memory, a stated number of threads, a provider that really runs.

ONNX Runtime falls back to the CPU when a provider is missing or takes no node, with at most a printed line.
Here the session is asked what it got, and its profile which provider ran each node.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trp_onnx.errors import ModelError, UsageError

_QUIET = 4
_PROFILED_RUNS = 5
_KERNEL = "_kernel_time"

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}


@dataclass(frozen=True)
class NodeTime:
    """One node of a session, after the runtime's own optimisation.

    Attributes:
        name: Its name there; `<output tensor>_nchwc` for a convolution in blocked layout.
        op: Its operator there.
        provider: What ran it.
        seconds: Mean time of a run.
    """

    name: str
    op: str
    provider: str
    seconds: float


def resolve_provider(name: str) -> str:
    """The runtime's name of a provider.

    Raises:
        UsageError: Unknown, or not in the installed onnxruntime.
    """
    import onnxruntime as ort

    if name not in PROVIDERS:
        raise UsageError(f"unknown execution provider '{name}'; there are {', '.join(PROVIDERS)}")
    wanted, available = PROVIDERS[name], ort.get_available_providers()
    if wanted not in available:
        raise UsageError(
            f"the execution provider {name} is not in this onnxruntime {ort.__version__}, which has "
            f"{', '.join(available)}: install a build that holds it"
        )
    return wanted


def open_timed(path: Path, provider: str = "cpu", threads: int = 1, *, profile: str | None = None) -> Any:
    """A session to time.

    Args:
        path: `.onnx` or `.ort`.
        provider: A name of `PROVIDERS`.
        threads: Intra-op threads; above one they sleep between runs instead of spinning, for a spinning pool
            takes the cores of every other session.
        profile: Prefix of the profile's file; None for no profile.

    Raises:
        UsageError: The provider is not there.
        ModelError: The model cannot be loaded, or the provider took none of it.
    """
    import onnxruntime as ort

    wanted = resolve_provider(provider)
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if threads > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    chain = [wanted] if provider == "cpu" else [wanted, PROVIDERS["cpu"]]
    try:
        session = ort.InferenceSession(str(path), options, providers=chain)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"onnxruntime {ort.__version__} cannot load '{path}': {reason}") from error
    if session.get_providers()[0] != wanted:
        raise ModelError(f"'{path}' fell back from {provider} to {session.get_providers()[0]}")
    return session


def bound_call(session: Any, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """A function that runs the session once on memory that is bound for good.

    Raises:
        ModelError: The model does not run on these inputs.
    """
    names = [value.name for value in session.get_inputs()]
    missing = [name for name in names if name not in feeds]
    if missing:
        raise ModelError(f"there is no value for input '{missing[0]}'")
    try:
        outputs = session.run(None, {name: feeds[name] for name in names})
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"the model does not run: {reason}") from error
    binding = session.io_binding()
    for name in names:
        array = np.ascontiguousarray(feeds[name])
        binding.bind_cpu_input(name, array)
    for value, array in zip(session.get_outputs(), outputs, strict=True):
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
            binding.bind_output(value.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        else:
            binding.bind_output(value.name, "cpu")
    held = (outputs, feeds)  # the binding reads and writes this memory

    def call() -> object:
        session.run_with_iobinding(binding)
        return held

    return call


def node_times(path: Path, feeds: Mapping[str, np.ndarray], provider: str = "cpu", threads: int = 1) -> list[NodeTime]:
    """Time and provider of each node, in running order, from the runtime's own profile.

    Profiling costs 1 to 2.5 %: for shares, not for speed-ups.

    Raises:
        UsageError, ModelError: See `open_timed`; also when the provider ran no node at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_timed(path, provider, threads, profile=os.path.join(folder, "p"))  # noqa: PTH118
        call = bound_call(session, feeds)
        for _ in range(_PROFILED_RUNS):
            call()
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    total: dict[str, NodeTime] = {}
    runs: dict[str, int] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        node, arguments = name.removesuffix(_KERNEL), event["args"]
        before = total.get(node)
        seconds = event["dur"] * 1e-6 + (before.seconds if before else 0.0)
        total[node] = NodeTime(node, arguments.get("op_name", ""), arguments.get("provider", ""), seconds)
        runs[node] = runs.get(node, 0) + 1
    found = [NodeTime(t.name, t.op, t.provider, t.seconds / runs[t.name]) for t in total.values()]
    if not any(node.provider == PROVIDERS[provider] for node in found):
        raise ModelError(f"'{path}': the execution provider {provider} took none of the nodes; they ran on the CPU")
    return found
