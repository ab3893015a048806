"""The worker: sessions of one onnxruntime, timed in turns.

It needs Python 3.9, NumPy and onnxruntime and nothing of this package: the same file runs in this process, under
another interpreter with another onnxruntime, and on a board. As a program it answers requests, one JSON object a line:

    {"do": "prepare", "models": [...], "feeds": {...}, "setting": {...}}
    {"do": "run", "rounds": 4, "repeats": [3, 5]}
        ->  {"ok": {"seconds": [[of one call, model by model], ...], "disturbed": [whether, ...]}}

Between two calls of a model it says {"alive": true}, once a second at most; an error is
{"refused": kind, "why": one sentence}.
"""

from __future__ import annotations

import base64
import bisect
import gc
import importlib
import importlib.util
import json
import os
import platform
import queue
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Call = Callable[[], Any]
Progress = Callable[[], object]

_QUIET = 4
_PREFIX = "trp-onnx-"
_FOLDERS: list[str] = []
"""Temporary folders, to be removed when the host is gone in the middle of something."""

_KERNEL = "_kernel_time"
_PLUGINS = {"QNNExecutionProvider": "onnxruntime_qnn"}
"""Providers that come as a package of their own, which registers them with onnxruntime."""


class Refusal(Exception):
    """What cannot be done, in a sentence; `kind` says whose fault it is: "model" or "runner"."""

    def __init__(self, kind: str, why: str) -> None:
        """Both as the host shows them."""
        super().__init__(why)
        self.kind = kind


_OFF_CORE, _UNNOTICED = 0.03, 5e-5
"""A sample is disturbed when the thread was off its core for more than this part of it, and this many seconds."""


def _processor_clock() -> Call | None:
    """The clock of this thread's own processor time; None where it ticks too coarsely for a sample."""
    start = time.perf_counter()
    first = time.thread_time()
    while time.thread_time() == first:
        if time.perf_counter() - start > _UNNOTICED:
            return None
    return time.thread_time


def take_turns(
    calls: Sequence[Call],
    rounds: int,
    repeats: Sequence[int],
    warm: bool = True,
    on_turn: Progress = lambda: None,
    alone: bool = False,
) -> tuple[list[list[float]], list[bool]]:
    """Seconds of one call, (rounds, calls): turns in an order that flips every round, no garbage collection between.

    With `warm` a call that is not timed begins each turn: else it is in the caches whether the one before was another,
    and of more than two the first and the last are their own neighbours at every flip.

    Calls that are `alone` do all their work on this thread. Where it takes less processor time than time went by,
    another process had the core: the whole round then counts by processor time, and is said to be disturbed.

    Returns:
        The seconds, and which rounds were disturbed; none where it cannot be known.
    """
    samples, disturbed = [], []
    own = _processor_clock() if alone else None
    collects = gc.isenabled()
    gc.disable()
    try:
        for done in range(rounds):
            order = range(len(calls)) if done % 2 == 0 else range(len(calls) - 1, -1, -1)
            sample, busy = [0.0] * len(calls), [0.0] * len(calls)
            for i in order:
                call, count = calls[i], repeats[i]
                if warm:
                    call()
                worked = own() if own else 0.0
                start = time.perf_counter()
                for _ in range(count):
                    call()
                sample[i] = (time.perf_counter() - start) / count
                busy[i] = (own() - worked) / count if own else 0.0
                on_turn()
            lost = own is not None and any(map(_off_core, sample, busy, repeats))
            samples.append(busy if lost else sample)
            disturbed.append(lost)
    finally:
        if collects:
            gc.enable()
    return samples, disturbed


def _off_core(seconds: float, busy: float, count: int = 1) -> bool:
    """Whether another process had the core for a while, in a sample of so many calls."""
    return seconds - busy > max(_OFF_CORE * seconds, _UNNOTICED / count)


class Load:
    """What this machine does beside this process, from now on (Linux only)."""

    def __init__(self) -> None:
        """Begin now."""
        self._began = time.perf_counter(), _busy_seconds(), time.process_time()

    def of_others(self) -> float | None:
        """Part of all cores that other processes kept busy; None where it is not known."""
        start, before, own = self._began
        busy, passed = _busy_seconds(), time.perf_counter() - start
        if busy is None or before is None or passed < _TICKS * _TICK:
            return None
        spent = busy - before - (time.process_time() - own)
        return min(1.0, max(0.0, spent / (passed * (os.cpu_count() or 1))))


_TICK, _TICKS = 0.01, 5
"""Seconds in which Linux counts the work of a core; fewer of them say nothing."""


def _busy_seconds() -> float | None:
    """Work of all cores since the machine started (proc(5): user, nice, system, irq and softirq)."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(word) for word in file.readline().split()[1:8]]
    except (OSError, ValueError):
        return None
    user, nice, system, _, _, irq, soft = ticks
    return (user + nice + system + irq + soft) * _TICK


class Worker:
    """What a runner does, in this process; arrays and bytes as they are."""

    def __init__(self, on_turn: Progress = lambda: None) -> None:
        """Nothing is prepared yet; `on_turn` is called after whatever takes time."""
        self._on_turn = on_turn
        self._models: list[str | bytes] = []
        self._feeds: dict[str, np.ndarray] = {}
        self._setting: dict[str, Any] = {}
        self._sessions: list[Any] = []
        self._calls: list[Call] = []
        self._load = Load()

    def describe(self) -> dict[str, Any]:
        """The machine and the runtime."""
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise Refusal(
                "runner", f"{sys.executable} has no onnxruntime ({error}): pip install onnxruntime"
            ) from error

        return {
            "machine": machine_name(), "runtime": ort.__version__, "host": f"Python {platform.python_version()}",
            "providers": [*ort.get_available_providers(), *(p for p in _PLUGINS if _plugin(p))], "profiles": True,
        }  # fmt: skip

    def prepare(self, models: Sequence[str | bytes], feeds: dict[str, np.ndarray], setting: dict[str, Any]) -> None:
        """Open the models, in place of those before, on memory that is bound for good.

        Args:
            models: Paths, or the files themselves.
            feeds: An array for each input.
            setting: `provider` (the runtime's name), `options` (of the provider), `config` (session entries),
                `threads` (of the session), `blocked` (whether convolutions may run in blocked layout).
        """
        self._models, self._feeds, self._setting = list(models), feeds, setting
        self._sessions, self._calls = [], []
        for model in models:
            session = self._open(model)
            self._sessions.append(session)
            self._calls.append(_bound_call(session, feeds))
            self._on_turn()
        self._load = Load()

    @property
    def _alone(self) -> bool:
        """Whether a run does all its work on this thread."""
        return bool(self._setting["threads"] == 1 and self._setting["provider"] == "CPUExecutionProvider")

    def run(self, rounds: int, repeats: Sequence[int], warm: bool = True) -> dict[str, Any]:
        """See `take_turns`."""
        seconds, disturbed = take_turns(self._calls, rounds, repeats, warm, self._on_turn, self._alone)
        others = self._load.of_others()
        if others is not None:
            self._load = Load()
        return {"seconds": seconds, "disturbed": disturbed, "others": others}

    def outputs(self) -> list[dict[str, np.ndarray]]:
        """Outputs of each model, by name; the elements of a sequence are "name[0]", "name[1]", ..."""
        found = []
        for session in self._sessions:
            names = [value.name for value in session.get_outputs()]
            wanted = {value.name for value in session.get_inputs()}
            values = session.run(names, {n: a for n, a in self._feeds.items() if n in wanted})
            found.append({key: array for name, value in zip(names, values) for key, array in _arrays(name, value)})
            self._on_turn()
        return found

    def profile(self, models: Sequence[int], rounds: int) -> dict[str, Any]:
        """Plain and profiled runs of some models in turns.

        Returns:
            `plain`: seconds of a plain run, (rounds, models); `nodes`: for each model the name, operator and provider
            of its nodes in running order; `seconds`: for each model the nodes' times, (rounds, nodes); `lost`: seconds
            of each profiled run in which another process had the core, (rounds, models).
        """
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
            calls, sessions = [], []
            _FOLDERS.append(folder)
            for i in models:
                prefix = os.path.join(folder, f"p{i}-")
                sessions.append(self._open(self._models[i], prefix))
                calls.append(_bound_call(sessions[-1], self._feeds))
                self._on_turn()
            plain, lost = [], []
            own = _processor_clock() if self._alone else None
            for _ in range(rounds):
                plain.append([take_turns([self._calls[i]], 1, [1], False, alone=self._alone)[0][0][0] for i in models])
                lost.append([_lost(call, own) for call in calls])
                self._on_turn()
            found = [_read_profile(session.end_profiling()) for session in sessions]
        return {
            "plain": plain, "nodes": [n for n, _ in found], "seconds": [s[-rounds:] for _, s in found], "lost": lost,
        }  # fmt: skip

    def _open(self, model: str | bytes, profile: str | None = None) -> Any:
        import onnxruntime as ort

        setting = self._setting
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = setting["threads"]
        options.inter_op_num_threads = 1
        for key, value in setting["config"].items():
            options.add_session_config_entry(key, value)
        if not setting["blocked"]:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        wanted, cpu = setting["provider"], "CPUExecutionProvider"
        chain: list[Any] | None = [(wanted, setting["options"]), *([] if wanted == cpu else [(cpu, {})])]
        name = "the model" if isinstance(model, bytes) else f"'{model}'"
        try:
            if _plugin(wanted):
                chain = None
                _add_plugin(options, wanted, setting["options"])
            session = ort.InferenceSession(model, options, providers=chain)
        except Exception as error:
            raise Refusal("model", f"onnxruntime {ort.__version__} cannot load {name}: {_reason(error)}") from error
        if session.get_providers()[0] != wanted:
            raise Refusal("model", f"{name} fell back from {wanted} to {session.get_providers()[0]}")
        return session


def _lost(call: Call, own: Call | None) -> float:
    """Seconds of a call in which another process had the core."""
    if own is None:
        call()
        return 0.0
    start, worked = time.perf_counter(), own()
    call()
    seconds, busy = time.perf_counter() - start, own() - worked
    return seconds - busy if _off_core(seconds, busy) else 0.0


def _plugin(provider: str) -> Any:
    """The package that brings a provider, or None."""
    import onnxruntime as ort

    name = _PLUGINS.get(provider)
    known = name is not None and hasattr(ort, "register_execution_provider_library")
    return importlib.import_module(name) if known and name and importlib.util.find_spec(name) else None


def _add_plugin(options: Any, provider: str, wanted: dict[str, str]) -> None:
    """Have a session made on a provider that is a package of its own."""
    import onnxruntime as ort

    package = _plugin(provider)
    if not any(device.ep_name == provider for device in ort.get_ep_devices()):
        ort.register_execution_provider_library(provider, package.get_library_path())
    found = [device for device in ort.get_ep_devices() if device.ep_name == provider]
    if "backend_type" in wanted:
        backend = getattr(package, f"get_qnn_{wanted['backend_type']}_path")()
        wanted = {**{k: v for k, v in wanted.items() if k != "backend_type"}, "backend_path": backend}
    options.add_provider_for_devices(found[:1], wanted)


def machine_name() -> str:
    """The processor at hand, or the board that it is on."""
    found: dict[str, str] = {}
    for path in ("/proc/cpuinfo", "/proc/device-tree/model"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    name, colon, value = line.partition(":")
                    found.setdefault(*((name.strip(), value.strip()) if colon else ("Model", line.strip("\0\n "))))
        except OSError:
            pass
    for key in ("model name", "Model"):
        if found.get(key):
            return found[key]
    codes = [found[key] for key in ("CPU implementer", "CPU part", "CPU revision") if key in found]
    return " ".join([platform.processor() or platform.machine(), *codes])


def _arrays(name: str, value: Any) -> list[tuple[str, np.ndarray]]:
    """An output as arrays: itself, the elements of a sequence or a map, nothing for an optional that is absent."""
    if value is None:
        return []
    if not isinstance(value, (list, dict)):
        return [(name, np.asarray(value))]
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    return [found for key, entry in entries for found in _arrays(f"{name}[{key}]", entry)]


def _bound_call(session: Any, feeds: dict[str, np.ndarray]) -> Call:
    """A function that runs the session once on memory that is bound for good."""
    names = [value.name for value in session.get_inputs()]
    missing = [name for name in names if name not in feeds]
    if missing:
        raise Refusal("model", f"there is no value for input '{missing[0]}'")
    try:
        outputs = session.run(None, {name: feeds[name] for name in names})
    except Exception as error:
        raise Refusal("model", f"the model does not run: {_reason(error)}") from error
    optional = any(value.type.startswith("optional") for value in session.get_outputs())
    if optional or any(feeds[name].dtype.kind in "OSU" for name in names):  # neither they nor strings are bound
        return lambda: session.run(None, {name: feeds[name] for name in names})
    binding = session.io_binding()
    for name in names:
        binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
    for value, array in zip(session.get_outputs(), outputs):
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
            binding.bind_output(value.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        else:
            binding.bind_output(value.name, "cpu")
    held = (outputs, feeds)  # the binding reads and writes this memory

    def call() -> object:
        session.run_with_iobinding(binding)
        return held

    return call


def _read_profile(path: str) -> tuple[list[list[str]], list[list[float]]]:
    """Name, operator and provider of each node in running order, and their seconds, (runs, nodes).

    A duration is stored in whole microseconds, cut off: half of one is added.
    """
    with open(path, encoding="utf-8") as file:
        events = json.load(file)
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    runs: list[list[tuple[int, list[str], float]]] = [[] for _ in starts]
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            about = event["args"]
            node = [name[: -len(_KERNEL)], about.get("op_name", ""), about.get("provider", "")]
            runs[bisect.bisect_right(starts, event["ts"]) - 1].append((event["ts"], node, (event["dur"] + 0.5) * 1e-6))
    runs = [sorted(run, key=lambda entry: entry[0]) for run in runs]
    return [node for _, node, _ in runs[-1]], [[seconds for *_, seconds in run] for run in runs]


def _reason(error: BaseException) -> str:
    """The first line, without the runtime's prefixes, source lines and function signatures."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for noise in (
        r"\[ONNXRuntimeError\] : \d+ : ",
        r"Load model from .*? failed: ?",
        r"/\S+\.(?:cc|h):\d+ [^()]*\(.*?\)(?: const)? ",
    ):
        line = re.sub(noise, "", line)
    return line[:300]


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array for a line of JSON."""
    array = np.ascontiguousarray(array)
    return {
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "data": base64.b64encode(array.tobytes()).decode(),
    }


def unpack(entry: dict[str, Any]) -> np.ndarray:
    """What `pack` made."""
    return np.frombuffer(base64.b64decode(entry["data"]), entry["dtype"]).reshape(entry["shape"])


def main() -> None:
    """Answer requests until there are none."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not end up among the answers

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    last = [time.monotonic()]

    def alive() -> None:
        if time.monotonic() - last[0] > 1:
            last[0] = time.monotonic()
            say({"alive": True})

    requests: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            requests.put(line)
        folder = os.environ.get("TMPDIR", "")
        if os.path.basename(folder).startswith("trp-onnx-worker."):  # made for this process
            _FOLDERS.append(folder)
        for folder in _FOLDERS:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)  # the host is gone, whatever this process hangs in

    threading.Thread(target=listen, daemon=True).start()
    worker = Worker(alive)
    while True:
        request = json.loads(requests.get())
        do = request.pop("do")
        try:
            if do == "prepare":
                request["models"] = [
                    m if isinstance(m, str) else base64.b64decode(m["data"]) for m in request["models"]
                ]
                request["feeds"] = {name: unpack(entry) for name, entry in request["feeds"].items()}
            answer = getattr(worker, do)(**request)
            if do == "outputs":
                answer = [{name: pack(array) for name, array in found.items()} for found in answer]
            say({"ok": answer})
        except Refusal as refusal:
            say({"refused": refusal.kind, "why": str(refusal)})
        except Exception as error:
            say({"refused": "runner", "why": f"{type(error).__name__}: {_reason(error)}"})


if __name__ == "__main__":
    main()
