"""Sessions made to be timed: bound memory, a stated number of threads, a provider that really runs.

ONNX Runtime falls back to the CPU when a provider is missing or takes no node, with at most a printed line.
Here the session is asked what it got, and its profile which provider ran each node.
"""

from __future__ import annotations

import bisect
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from trp_onnx.errors import ModelError, UsageError

_QUIET = 4
_PROFILED_RUNS = 15
_KERNEL = "_kernel_time"

IM2COL = "cpu-im2col"
"""The CPU without its blocked layout: the kernels that run on ARM, in WebAssembly and in an `.ort` file."""

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cpu-im2col": "CPUExecutionProvider",
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
        seconds: Time of a run.
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


def open_timed(path: Path | bytes, provider: str = "cpu", threads: int = 1, *, profile: str | None = None) -> Any:
    """A session to time.

    Args:
        path: `.onnx` or `.ort`, or a serialised model.
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
    if provider == IM2COL:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    chain = [wanted] if wanted == PROVIDERS["cpu"] else [wanted, PROVIDERS["cpu"]]
    source, name = (path, "the model") if isinstance(path, bytes) else (str(path), f"'{path}'")
    try:
        session = ort.InferenceSession(source, options, providers=chain)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"onnxruntime {ort.__version__} cannot load {name}: {reason}") from error
    if session.get_providers()[0] != wanted:
        raise ModelError(f"{name} fell back from {provider} to {session.get_providers()[0]}")
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


@dataclass(frozen=True)
class Run:
    """One run of a profiled session: its time, and its nodes in running order."""

    seconds: float
    nodes: tuple[NodeTime, ...]


class Profiled:
    """A session that notes the time of every node in every run; a context manager.

    Profiling costs 1 to 2.5 %: for shares, not for speed-ups.
    """

    def __init__(
        self, model: Path | bytes, feeds: Mapping[str, np.ndarray], provider: str = "cpu", threads: int = 1
    ) -> None:
        """Open it; errors are those of `open_timed` and `bound_call`."""
        self._folder = tempfile.TemporaryDirectory()
        try:
            prefix = os.path.join(self._folder.name, "p")  # noqa: PTH118
            self._session = open_timed(model, provider, threads, profile=prefix)
            self.run = bound_call(self._session, feeds)
        except BaseException:
            self._folder.cleanup()
            raise

    def runs(self) -> list[Run]:
        """What was noted so far, run by run; ends the profile.

        A duration is stored in whole microseconds, cut off: half of one is added.
        """
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        whole = sorted((event["ts"], event["dur"]) for event in events if event.get("name") == "model_run")
        starts = [start for start, _ in whole]
        found: list[list[tuple[int, NodeTime]]] = [[] for _ in starts]
        for event in events:
            name = event.get("name", "")
            if event.get("cat") == "Node" and name.endswith(_KERNEL):
                arguments = event["args"]
                node = NodeTime(
                    name.removesuffix(_KERNEL), arguments.get("op_name", ""), arguments.get("provider", ""),
                    (event["dur"] + 0.5) * 1e-6,
                )  # fmt: skip
                found[bisect.bisect_right(starts, event["ts"]) - 1].append((event["ts"], node))
        return [
            Run((duration + 0.5) * 1e-6, tuple(node for _, node in sorted(nodes, key=lambda pair: pair[0])))
            for (_, duration), nodes in zip(whole, found, strict=True)
        ]

    def __enter__(self) -> Profiled:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
        self._folder.cleanup()


def node_times(path: Path, feeds: Mapping[str, np.ndarray], provider: str = "cpu", threads: int = 1) -> list[NodeTime]:
    """Median time and provider of each node, in running order, from the runtime's own profile.

    Raises:
        UsageError, ModelError: See `open_timed`; also when the provider ran no node at all.
    """
    with Profiled(path, feeds, provider, threads) as session:
        for _ in range(_PROFILED_RUNS):
            session.run()
        runs = session.runs()
    seconds: dict[str, list[float]] = {}
    known: dict[str, NodeTime] = {}
    for run in runs:
        for node in run.nodes:
            known.setdefault(node.name, node)
            seconds.setdefault(node.name, []).append(node.seconds)
    found = [NodeTime(name, node.op, node.provider, float(np.median(seconds[name]))) for name, node in known.items()]
    if not any(node.provider == PROVIDERS[provider] for node in found):
        raise ModelError(f"'{path}': the execution provider {provider} took none of the nodes; they ran on the CPU")
    return found
