"""Tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from trp_onnx.latency import Bench, LatencyTable
from trp_onnx.planning import Decision, SpaceDecision
from trp_onnx.printable import printable
from trp_onnx.report.document import Report
from trp_onnx.rows import si

if TYPE_CHECKING:
    from trp_onnx.commands.inspect import Inspection

Shown = Table | Text

ENERGIES = (0.90, 0.95, 0.99)
"""Parts of a layer's energy whose rank is shown."""


def report_tables(report: Report, *, layers: bool = True) -> list[Shown]:
    """What was gained and lost, layer by layer and in all."""
    shown = [*_space_table(report.spaces), *_layer_table(report.layers)] if layers else []
    return [*shown, *_summary_table(report)]


def _space_table(spaces: tuple[SpaceDecision, ...]) -> list[Shown]:
    if not spaces:
        return []
    table = Table(title=None, header_style="bold", box=None, pad_edge=False)
    table.add_column("space")
    table.add_column("of", no_wrap=True)
    for heading in ("units", "kept", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for space in spaces[:MOST_ROWS]:
        kept, error = ("all", "") if space.kept == space.units else (str(space.kept), f"{space.relative_error:.3f}")
        table.add_row(_Name(space.name, ""), space.kind, str(space.units), kept, error)
    return [table, *below(*_more(len(spaces), "spaces"))]


def below(*lines: str) -> list[Shown]:
    """What stands under a table; a caption would be no wider than that."""
    return [Text(line, style="dim italic") for line in lines]


def _layer_table(decisions: tuple[Decision, ...]) -> list[Shown]:
    table = Table(title=None, header_style="bold", box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column("scheme", no_wrap=True)
    for heading in ("rank", "MACs before", "after", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    reasons = _Reasons()
    for d in decisions[:MOST_ROWS]:
        rank = ",".join(map(str, d.rank)) if d.rank else ""
        error = f"{d.relative_error:.3f}" if d.scheme else ""
        after = si(d.macs_after) if d.macs_after != d.macs_before else "="
        scheme = d.scheme or f"kept ({reasons.number(d.reason)})"
        table.add_row(_Name(d.name, d.role), scheme, rank, si(d.macs_before), after, error)
    return [table, *below(*_more(len(decisions)), *reasons.lines())]


def _more(count: int, what: str = "layers") -> list[str]:
    more = count - MOST_ROWS
    return [f"and {more} more {what}: --json has them all"] if more > 0 else []


class _Reasons:
    """Why layers are not factorised: numbers in the table, sentences below it."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, reason: str) -> int:
        return self._numbers.setdefault(reason, min(len(self._numbers), _REASONS) + 1)

    def lines(self) -> list[str]:
        lines = [f"({number}) {printable(reason)}" for reason, number in self._numbers.items()]
        others = f"({_REASONS + 1}) other reasons: --json has that of every layer"
        return [*lines[:_REASONS], *([others] if len(lines) > _REASONS else [])]


def _summary_table(report: Report) -> list[Shown]:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in ("before", "after", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, size in (("MACs", report.macs), ("parameters", report.parameters), ("file bytes", report.file_bytes)):
        label = f"{name}, {size.unknown} nodes unknown" if size.unknown else name
        table.add_row(label, si(size.before), si(size.after), f"{size.remaining:.3f}")
    if report.score is not None:
        table.add_row(*report.score_row())
    if report.limit is not None:
        table.add_row("lost", "", f"{report.limit.lost:.2f}", f"at most {report.limit.allowed:g}")
    latency = report.latency
    if latency is not None and latency.measured is not None:
        table.add_row(*report.latency_row(latency))
    if latency is not None and latency.predicted is not None:
        table.add_row("time, predicted", "", "", f"{latency.predicted:.2f}x as fast")
    trained = report.trained
    if trained is not None and trained.correct is not None and trained.written_correct is not None:
        parts = (trained.correct / trained.samples, trained.written_correct / trained.samples)
        table.add_row(
            f"held-out top-1 of {trained.samples}", f"{parts[0]:.2%}", f"{parts[1]:.2%}",
            "trained, then factorised" if parts[0] == parts[1] else f"{(parts[1] - parts[0]) * 100:+.2f} points",
        )  # fmt: skip
    recovered = report.recovered
    if recovered is not None:
        table.add_row(
            f"held-out distance of {recovered.samples}", f"{recovered.before:.4f}", f"{recovered.after:.4f}",
            f"recovered in {recovered.steps} steps at {recovered.rate:g}",
        )  # fmt: skip
    for output in report.outputs:
        table.add_row(f"output '{plain(output.name)}'", "", f"{output.relative_error:.2e}", output.measure)
        if output.worst_channel is not None:
            table.add_row(
                "  its worst channel", str(output.worst_channel), f"{output.worst_error:.2e}", "error over spread"
            )
    kept = Counter("factorised" if d.scheme else "kept" for d in report.layers)
    table.add_row("layers", str(len(report.layers)), f"{kept['factorised']} factorised", f"{kept['kept']} kept")
    if report.spaces:
        cut = sum(space.kept < space.units for space in report.spaces)
        table.add_row("spaces", str(len(report.spaces)), f"{cut} cut", f"{len(report.spaces) - cut} whole")
    limit = report.limit
    lost = f"lost: {plain(limit.metric.counted)} on {plain(limit.after.on)}; " if limit is not None else ""
    verified = f"verified on {plain(report.verified_on)}; {sum(report.seconds.values()):.1f} s"
    return [table, *below(f"{lost}{verified}", printable(report.written_to))]


class _Name:
    """A name on one line; where there is no room for it its beginning goes, because layers differ in their ends."""

    def __init__(self, name: str, role: str) -> None:
        self._name, self._role = printable(name), f" ({role})" if role else ""

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        whole = cell_len(self._name + self._role)
        return Measurement(min(whole, _SHORTEST + len(self._role)), whole)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name, room = self._name, max(1, options.max_width - len(self._role))
        if cell_len(name) > room:
            while cell_len(name) > room - 1:
                name = name[1:]
            name = f"\u2026{name}"
        yield Text(name + self._role, no_wrap=True)


_SHORTEST = 12
"""Cells that a name keeps."""


def inspection_tables(inspection: Inspection, *, layers: bool = True) -> list[Shown]:
    """The layers of a model, its spaces, and the verdict."""
    shown = [*_layers_seen(inspection), *_spaces_seen(inspection)] if layers else []
    return [*shown, Text(inspection.verdict)]


def _layers_seen(inspection: Inspection) -> list[Shown]:
    """Cost, spectrum, schemes; a row for each layer."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer")
    table.add_column("op", no_wrap=True)
    for heading in ("in>out", "MACs", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for energy in ENERGIES:
        table.add_column(f"{energy:.0%}", justify="right", no_wrap=True)
    table.add_column("full", justify="right", no_wrap=True)
    table.add_column("spectrum of", no_wrap=True)
    reasons = _Reasons()
    for view in inspection.layers[:MOST_ROWS]:
        channels = f"{view.channels[0]}>{view.channels[1]}" if view.channels else "-"
        if view.groups > 1:
            channels += f"/{view.groups}"
        ranks = [f"{r}" if view.pays_at_energy[e] else f"[dim]{r}[/]" for e, r in view.rank_at_energy.items()]
        table.add_row(
            _Name(view.name, view.role),
            plain(f"{view.op} {'x'.join(map(str, view.kernel))}".rstrip()),
            channels,
            si(view.macs),
            f"{view.share:.1%}" if view.share is not None else "-",
            *(ranks or ["", "", ""]),
            str(view.full_rank or ""),
            f"- ({reasons.number(view.reason)})" if view.reason else view.scheme or "",
        )
    about = (
        f"{si(inspection.macs)} MACs in {len(inspection.layers)} layers{_others(inspection)}; 90 %, 95 %, 99 %: the "
        "rank that keeps so much of the energy, dim where that rank costs more than the dense layer; /g: groups"
    )
    return [table, *below(*_more(len(inspection.layers)), *reasons.lines(), printable(about))]


def _spaces_seen(inspection: Inspection) -> list[Shown]:
    """A row for each space."""
    if not inspection.spaces:
        return []
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("space")
    table.add_column("kind", no_wrap=True)
    table.add_column("units", justify="right", no_wrap=True)
    table.add_column("made by > read by", no_wrap=True)
    reasons = _Reasons()
    for view in inspection.spaces[:MOST_ROWS]:
        units = f"{view.units}/{view.groups}" if view.groups > 1 else str(view.units)
        layers = f"{_first_of(view.producers)} > {_first_of(view.consumers)}"
        number = "" if view.closed is None else f"closed ({reasons.number(view.closed)})"
        table.add_row(_Name(view.name, ""), view.kind, units, number or plain(layers))
    about = "units of a space can be removed from all its layers together; /g: equally many of each of g groups"
    return [table, *below(*_more(len(inspection.spaces), "spaces"), *reasons.lines(), about)]


def _first_of(names: Sequence[str]) -> str:
    first = names[0] if names else "-"
    short = first if len(first) <= _NAME else f"\u2026{first[1 - _NAME :]}"
    return f"{short} and {len(names) - 1} more" if len(names) > 1 else short


_NAME = 24
"""Characters of a layer's name in the table of spaces."""

MOST_ROWS = 1000
"""Layers that a table shows; those of a terminal take a millisecond a row."""

_REASONS = 8
"""Reasons that are shown below the table."""


def _others(inspection: Inspection) -> str:
    """What operators that cannot be factorised take of the MACs."""
    others = [view for view in inspection.layers if view.reason is not None]
    if not others:
        return ""
    share = sum(view.share or 0.0 for view in others)
    kinds = ", ".join(f"{op} {count}" for op, count in Counter(view.op for view in others).most_common(4))
    part = f"{share:.1%} of them in" if inspection.macs and not inspection.unknown else "some in"
    return f", {part} operators that cannot be factorised ({kinds})"


def bench_tables(bench: Bench, *, layers: bool = True) -> list[Shown]:
    """Speed-ups, and where each model spends its time."""
    models = Table(header_style="bold", box=None, pad_edge=False)
    models.add_column("model", overflow="fold")
    for heading in ("ms", "speed-up", "95 %"):
        models.add_column(heading, justify="right", no_wrap=True)
    models.add_column("providers")
    for contender in bench.contenders:
        ratio = contender.ratio
        models.add_row(
            plain(contender.model), f"{contender.milliseconds:.3f}", f"{ratio.median:.3f}x",
            f"{ratio.low:.3f}-{ratio.high:.3f}",
            ", ".join(f"{name.removesuffix('ExecutionProvider')} {n}" for name, n in contender.providers.items()),
        )  # fmt: skip
    threads = f"{bench.threads} thread" + ("s" if bench.threads > 1 else "")
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in bench.shapes.items())
    shown = [models, *below(printable(f"{bench.runtime}; {bench.rounds} interleaved rounds, {threads}, {shapes}"))]
    return [*shown, _layer_times(bench)] if layers else shown


def _layer_times(bench: Bench) -> Table:
    layers = Table(header_style="bold", box=None, pad_edge=False)
    layers.add_column("layer")
    for number in range(1, len(bench.contenders) + 1):
        layers.add_column("ms" if number == 1 else f"ms, {number}.", justify="right", no_wrap=True)
    first = bench.contenders[0].layers
    for name in sorted(first, key=lambda n: (-first[n], n)):
        cells = [contender.layers.get(name) for contender in bench.contenders]
        layers.add_row(_Name(name or "layout changes", ""), *("" if c is None else f"{c:.4f}" for c in cells))
    return layers


def latency_tables(table: LatencyTable) -> list[Shown]:
    """The layers of a latency table, slowest first, with the ranks that were timed."""
    shown = Table(header_style="bold", box=None, pad_edge=False)
    shown.add_column("layer", overflow="fold")
    for heading in ("ms", "share"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("time of factors over dense, by rank", overflow="fold")
    for name, share in sorted(table.shares.items(), key=lambda pair: (-pair[1], pair[0])):
        parts = table.parts.get(table.signatures[name], {})
        curves = (
            f"{scheme} " + " ".join(f"{'x'.join(map(str, rank))}:{part:.2f}" for rank, part in knots[:4])
            for scheme, knots in parts.items()
            if knots
        )
        shown.add_row(plain(name), f"{share * table.milliseconds:.3f}", f"{share:.1%}", "; ".join(curves))
    about = f"{table.target}; one run {table.milliseconds:.2f} ms; ranks in steps of {table.step}"
    return [shown, *below(printable(about))]


def plain(text: str) -> str:
    """Names come from files: brackets in them are no markup, and what cannot be seen is shown as an escape."""
    return escape(printable(text))
