"""`trp-onnx bench`: several models against the first, and where each spends its time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_onnx.data import Data
from trp_onnx.data.feeding import read_inputs
from trp_onnx.errors import DataError, ModelError, UsageError
from trp_onnx.graph.in_memory import ModelLike, model_file, shown
from trp_onnx.graph.inputs import interface_of
from trp_onnx.graph.layers import FACTORISABLE
from trp_onnx.graph.model import open_model
from trp_onnx.graph.provenance import origins_of
from trp_onnx.graph.session import Arrays, feeds_for, open_session
from trp_onnx.graph.sizes import sizes_from
from trp_onnx.job.network import Shapes
from trp_onnx.latency.pace import Pace, measure_at
from trp_onnx.latency.table import target_of
from trp_onnx.latency.timing import Ratio, Timing
from trp_onnx.printable import printable
from trp_onnx.progress import at_work, watch
from trp_onnx.rows import Headlined, shortened
from trp_onnx.runners import PROVIDERS, Description, NodeTime, Runner, open_runner
from trp_onnx.runners.open import TIMEOUT
from trp_onnx.schema import Document, held

_RENAMED = re.compile(r"(_nchwc|_token_\d+|(/\w+Fusion/)+)$")
"""What the runtime adds to the name of a node that it rewrites: to blocks of channels, int8, one with a neighbour."""

_PROFILED_RUNS = 15

ROUNDS = 200
"""Where nobody says how many."""


@dataclass(frozen=True)
class Contender:
    """One model of a benchmark.

    Attributes:
        model: Its file.
        milliseconds: Median of one run; drifts with the machine, for orientation.
        ratio: Speed-up over the first model.
        providers: Nodes that each execution provider ran.
        layers: Milliseconds of each layer, its factors added up, by the name of the layer; "" for the rest.
    """

    model: str
    milliseconds: float
    ratio: Ratio
    providers: dict[str, int]
    layers: dict[str, float]


@dataclass(frozen=True, repr=False)
class Bench(Headlined, Document):
    """The result of `bench`.

    Attributes:
        contenders: In the order that was given.
        rounds: Interleaved rounds that were run.
        threads: Intra-op threads.
        provider: The execution provider that was asked for.
        runtime: What ran them, and where.
        shapes: Shape of each input.
        notes: What a reader should know.
    """

    contenders: tuple[Contender, ...]
    rounds: int
    threads: int
    provider: str
    runtime: str
    shapes: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]

    def headline(self) -> list[Sequence[str]]:
        """Time and speed-up of each model."""
        rows = [
            (printable(c.model), f"{c.milliseconds:.3f} ms", f"{c.ratio.median:.3f}x",
             f"{c.ratio.low:.3f}-{c.ratio.high:.3f}")
            for c in self.contenders
        ]  # fmt: skip
        return [("model", "time", "speed-up", "95 %"), *shortened(rows)]


def bench(
    models: Sequence[ModelLike],
    *,
    rounds: int | None = None,
    threads: int = 1,
    provider: str = "cpu",
    runtime: str = "local",
    timeout: float = TIMEOUT,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Data | None = None,
) -> Bench:
    """Time models against the first one, interleaved (see `timing`).

    Args:
        models: Models that take the same inputs: `.onnx` or `.ort` files, bytes, `onnx.ModelProto` or `onnx_ir.Model`.
        rounds: At most so many; where not given 200, or as many as take some seconds, and more while the machine is
            slower than it is known to be. It ends when every interval is under 1 %.
        threads: Intra-op threads.
        provider: "cpu", "cpu-im2col" (the kernels of ARM and of `.ort` files), "xnnpack", "nnapi", "coreml", "qnn" or
            "openvino".
        runtime: "local", "python:PATH", "node", "web" or "ssh:HOST[:PYTHON]"; turns are taken over there.
        timeout: Seconds without a sign of life after which another runtime is given up.
        input_shapes: Sizes of dynamic inputs; a symbolic batch is 1.
        inputs: What they run on, whatever `open_data` takes; generated otherwise.

    Raises:
        UsageError: No model, or a provider that is not there.
        ModelError: A model cannot be loaded or run, or fell back to another provider.
        DataError: The inputs cannot be read.
        RunnerError: The runtime is not there, died or did not answer.
    """
    if not isinstance(models, Sequence) or isinstance(models, (str, bytes)):
        raise UsageError("bench takes a list of models")
    if not models:
        raise UsageError("give at least one model")
    rounds, threads = held(rounds, int | None, "rounds"), held(threads, int, "threads")
    timeout, input_shapes = held(timeout, float, "timeout"), held(input_shapes, Shapes | None, "input_shapes")
    if (rounds is not None and rounds < 1) or threads < 1:
        raise UsageError("--rounds and --threads are whole numbers from 1")
    with at_work() as heard, ExitStack() as stack:
        paths = [stack.enter_context(model_file(model))[0] for model in models]
        feeds = _feeds(paths, input_shapes, inputs)
        runner = stack.enter_context(open_runner(runtime, timeout))
        here = runner.describe()
        runner.prepare(paths, feeds, provider, threads)
        pace, what = Pace(paths[0], feeds, target_of(runner, provider, threads)), f"timing {len(paths)} models"
        with watch(what) as show:
            most, apart = (ROUNDS, None) if rounds is None else (rounds, 0.0)
            timing = measure_at(
                pace, runner.run, len(paths), most, apart=apart, on_round=lambda done: show(done, most, what)
            )
        contenders = tuple(
            _contender(shown(model), path, seconds, ratio, _nodes(runner, index, path, provider))
            for index, (model, path, seconds, ratio) in enumerate(
                zip(models, paths, timing.seconds, timing.ratios, strict=True)
            )
        )
        notes = (*heard, *timing.notes(), *_notes(paths, provider, here, timing))
    shapes = {name: tuple(np.shape(array)) for name, array in feeds.items()}
    return Bench(contenders, timing.rounds, threads, provider, f"{here.machine}, {here}", shapes, notes)


def _feeds(paths: Sequence[Path], input_shapes: Mapping[str, Sequence[int]] | None, inputs: Data | None) -> Arrays:
    """What models run on: by the first that says most of its inputs."""
    for path in paths:
        if not path.is_file():
            raise ModelError(f"the model '{path}' does not exist")
    onnx_files = [path for path in paths if _is_onnx(path)]
    first = open_model(onnx_files[0]) if onnx_files else interface_of(open_session(paths[0]))
    if inputs is not None:
        feeds = read_inputs(first, inputs)
        sizes_from(first, feeds, input_shapes)  # refuses shapes that contradict them
        return feeds
    if not onnx_files:
        raise DataError("an .ort file does not say enough about its inputs: give --inputs")
    return feeds_for(first, input_shapes)


def _is_onnx(path: Path) -> bool:
    return path.suffix.lower() != ".ort"


def _contender(name: str, path: Path, seconds: float, ratio: Ratio, nodes: Sequence[NodeTime]) -> Contender:
    ran = Counter(node.provider for node in nodes)
    graph = open_model(path).graph if _is_onnx(path) else ()
    origins = origins_of(ir.traversal.RecursiveGraphIterator(graph)) if isinstance(graph, ir.Graph) else {}
    return Contender(name, seconds * 1e3, ratio, dict(ran), layer_milliseconds(graph, nodes, origins))


def _notes(paths: Sequence[Path], provider: str, here: Description, timing: Timing) -> Iterator[str]:
    """What a reader should know of what was compared."""
    if len({_is_onnx(path) for path in paths}) > 1:
        yield (
            "an .ort file stands beside an .onnx: on x86 the .onnx runs in blocked layout and the .ort does not, so "
            "their ratio is one of layouts too"
        )
    if provider == "qnn" and not any(maker in here.machine.lower() for maker in ("qualcomm", "snapdragon")):
        yield "this is the simulator of QNN's HTP: what it takes is what the chip takes, its times say nothing"
    if any(ratio.width > 0.02 for ratio in timing.ratios):
        yield f"after {timing.rounds} rounds an interval is still wide: the machine is busy; try --rounds"


def _nodes(runner: Runner, index: int, path: Path, provider: str) -> Sequence[NodeTime]:
    """Time and provider of each node, from the runtime's own profile, where it has one."""
    if not runner.describe().profiles:
        return ()
    nodes = runner.profile([index], _PROFILED_RUNS).nodes[0]
    check_ran(f"'{path}'", nodes, provider)
    return nodes


def check_ran(model: str, nodes: Sequence[NodeTime], provider: str) -> None:
    """Refuse a profile in which a provider ran nothing, whatever the session says of it.

    Raises:
        ModelError: It is one.
    """
    if not any(node.provider == PROVIDERS[provider].name for node in nodes):
        raise ModelError(f"{model}: the execution provider {provider} took none of the nodes; they ran on the CPU")


def layer_milliseconds(
    graph: Iterable[ir.Node], nodes: Sequence[NodeTime], origins: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Time of each layer, by the name of its node; factors count as the layer that they were, see `origins_of`.

    The runtime fuses an activation or an addition into the convolution before it and names the whole after the
    last output: a product under the name of something else is traced back to the layer it began with.
    """
    producer: dict[str, ir.Node] = {}
    for node in graph:
        producer |= {value.name or "": node for value in node.outputs}
    by_name = {_name(node): node for node in producer.values()}
    found: dict[str, float] = {}
    claimed: set[str] = set()
    late: list[tuple[ir.Node, float]] = []
    for timed in nodes:
        plain = _RENAMED.sub("", timed.name)
        source = by_name.get(timed.name) or by_name.get(plain) or producer.get(plain)
        if "reorder" in timed.op.lower():
            name = ""
        elif source is None:
            name = plain
        elif source.op_type not in FACTORISABLE and any(op in timed.op for op in FACTORISABLE):
            late.append((source, timed.seconds))
            continue
        else:
            name = _name(source)
        claimed.add(name)
        found[name] = found.get(name, 0.0) + timed.seconds * 1e3
    for node, seconds in late:
        name = _fused_layer(node, claimed)
        claimed.add(name)
        found[name] = found.get(name, 0.0) + seconds * 1e3
    layers: dict[str, float] = {}
    for name, milliseconds in found.items():
        layer = (origins or {}).get(name, name)
        layers[layer] = layers.get(layer, 0.0) + milliseconds
    return layers


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def _fused_layer(node: ir.Node, claimed: set[str]) -> str:
    """The nearest layer before a node that no other entry of the profile stands for."""
    front, seen = [node], {node}
    while front:
        for candidate in front:
            if candidate.op_type in FACTORISABLE and _name(candidate) not in claimed:
                return _name(candidate)
        before = [p for n in front if n is node or n.op_type not in FACTORISABLE for p in n.predecessors()]
        front = [p for p in before if p not in seen]
        seen.update(front)
    return _name(node)
