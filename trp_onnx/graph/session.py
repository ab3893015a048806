"""Run a model in ONNX Runtime, quietly, and compare what comes out.

With `mapped`, external weights are mapped, not read: optimisation and prepacking would copy every one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.graph.generating import generate
from trp_onnx.graph.lent import LendingSession, take_out
from trp_onnx.process.parallel import allowed_threads

if TYPE_CHECKING:
    import onnx

Arrays = dict[str, np.ndarray]

_MANY = 20_000  # nodes
_LEAST, _MOST = 20 * _MANY, 256 << 20  # bytes of files in which nodes are counted

_QUIET = 4  # only fatal messages: what goes wrong is raised as well


def feeds_for(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0) -> Arrays:
    """Generated inputs, see `generating`.

    Raises:
        ModelError: An input is no tensor, or has a type that cannot be generated.
    """
    return generate(model, input_shapes, seed).arrays


def open_session(model: Path | onnx.ModelProto, *, mapped: bool = False) -> Any:
    """An InferenceSession on the CPU provider, of as many threads as OMP_NUM_THREADS allows.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(_QUIET)
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = allowed_threads()
    if mapped or many_nodes(model):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # Shape at once: its input need not wait for it
        options.add_session_config_entry("session.disable_prepacking", "1")
    name = f"'{model}'" if isinstance(model, Path) else "the model"
    weights: Arrays = {}
    try:
        if isinstance(model, Path):
            source: str | bytes = str(model)
        else:
            model, weights = take_out(model)
            source = model.SerializeToString()
    except Exception as error:  # protobuf's, whose kind depends on its implementation
        raise ModelError("the graph of the model is larger than 2 GB without its weights") from error
    try:
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise ModelError(f"ONNX Runtime {ort.__version__} cannot load {name}: {runtimes_reason(error)}") from error
    return LendingSession(session, weights) if weights else session


def many_nodes(model: Path | onnx.ModelProto) -> bool:
    """Whether the runtime's optimiser, whose time grows with the square of the nodes, is better left out."""
    if not isinstance(model, Path):
        return len(model.graph.node) > _MANY
    if model.suffix.lower() == ".ort" or not model.is_file() or not _LEAST <= model.stat().st_size <= _MOST:
        return False
    import onnx

    with contextlib.suppress(Exception):  # who loads it says what is wrong with it
        return len(onnx.load(model, load_external_data=False).graph.node) > _MANY
    return False


def run_session(session: Any, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Run once; outputs by name, as arrays (see `flat`). Inputs that the session does not have are left out.

    Raises:
        ModelError: The run failed.
    """
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    try:
        results = session.run(names, {name: array for name, array in feeds.items() if name in wanted})
    except Exception as error:
        shapes = ", ".join(f"{n}: {list(a.shape)}" for n, a in feeds.items() if n in wanted)
        raise ModelError(f"the model does not run on inputs of shape {shapes}: {runtimes_reason(error)}") from error
    return flat(dict(zip(names, results, strict=True)))


def flat(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every output as arrays: the elements of a sequence are "name[0]", "name[1]", ..., an absent optional is left out.

    A list of maps with the same keys (ZipMap: one map a sample) is one array, (samples, keys).
    """
    found: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        if value is None:
            continue
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            keys = sorted(value[0])
            if all(sorted(entry) == keys for entry in value):
                found[name] = np.array([[entry[key] for key in keys] for entry in value])
                continue
        if isinstance(value, (list, tuple)):
            found |= flat({f"{name}[{place}]": entry for place, entry in enumerate(value)})
        elif isinstance(value, dict):
            found |= flat({f"{name}[{key}]": entry for key, entry in value.items()})
        else:
            found[name] = np.asarray(value)
    return found


def runner(model: Path | onnx.ModelProto, *, mapped: bool = False) -> Callable[[Mapping[str, np.ndarray]], Arrays]:
    """Load a model; what comes back runs it, outputs by name.

    A model of types that the CPU provider has no kernel for (bfloat16) runs in onnx's reference
    implementation instead.

    Raises:
        ModelError: It cannot be loaded; or, where it runs, it cannot be run.
    """
    try:
        session = open_session(model, mapped=mapped)
    except ModelError as error:
        if "NOT_IMPLEMENTED" not in str(error):
            raise
        return partial(_run_reference, model, error)
    return partial(run_session, session)


def run_model(model: Path | onnx.ModelProto, feeds: Mapping[str, np.ndarray], *, mapped: bool = False) -> Arrays:
    """Load, run once and let go of a model, see `runner`.

    Raises:
        ModelError: It cannot be loaded or run.
    """
    return runner(model, mapped=mapped)(feeds)


def _run_reference(model: Path | onnx.ModelProto, why: ModelError, feeds: Mapping[str, np.ndarray]) -> Arrays:
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(str(model) if isinstance(model, Path) else model)
        with np.errstate(all="ignore"):  # what a model computes may overflow
            results = evaluator.run(None, {n: a for n, a in feeds.items() if n in evaluator.input_names})
    except Exception:
        raise why from None
    return flat(dict(zip(evaluator.output_names, results, strict=True)))


def relative_error(expected: Any, actual: Any) -> float:
    """`|a - b|_2 / |a|_2` of two outputs; inf when shapes, NaN or infinities differ."""
    if isinstance(expected, (list, dict)) or isinstance(actual, (list, dict)):
        return 0.0 if repr(expected) == repr(actual) else float("inf")
    a, b = np.asarray(expected), np.asarray(actual)
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind in "OSU":
        return 0.0 if np.array_equal(a, b) else float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    norm = float(np.linalg.norm(a[finite]))
    difference = float(np.linalg.norm(a[finite] - b[finite]))
    return difference / norm if norm > 0 else float(difference > 0)


def runtimes_reason(error: Exception) -> str:
    """What onnxruntime means, without its prefixes, source lines and function signatures."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    opset = re.search(r"Opset (\d+) is under development.*domain (\S+) is till opset (\d+)", text)
    if opset:
        wanted, domain, newest = opset.groups()
        return f"it is of opset {wanted} of {domain}, this runtime knows up to {newest}; export it with an older opset"
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", text)
    text = re.sub(r"Load model from .*? failed: ?", "", text)
    text = re.sub(r"/\S+\.(?:cc|h):\d+ [^()]*\(.*?\)(?: const)? ", "", text)
    return text[:300] + ("..." if len(text) > 300 else "")
