"""The report as one HTML page that opens from disk: text by a template, plots as SVG inside it, no network."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trp_onnx._version import __version__
from trp_onnx.errors import UsageError
from trp_onnx.planning import Decision
from trp_onnx.printable import printable
from trp_onnx.report.document import Report
from trp_onnx.report.spectra import Spectrum
from trp_onnx.report.words import chain_of, verdict
from trp_onnx.rows import si

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, AFTER, ACCENT, QUIET = "#9aa5b1", "#1f6feb", "#d9480f", "#52606d"


def _shown(value: object) -> object:
    """Names as they can be shown; what is markup already (plots) has none left in it."""
    return printable(value) if type(value) is str else value


@dataclass(frozen=True)
class Card:
    """One figure at a glance."""

    title: str
    value: str
    detail: str
    good: bool | None = None


def check_page() -> None:
    """Refuse a report before any work when what draws it is missing.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
    """
    from importlib.util import find_spec

    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise UsageError(f"--report draws a page with {' and '.join(missing)}: pip install 'trp-onnx[report]'")


def render_page(report: Report, command: str | None = None) -> str:
    """The page.

    Args:
        report: What to show.
        command: How to repeat it; left out where not known.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=_shown,
    )  # fmt: skip
    environment.filters["si"] = si
    environment.filters["breakable"] = _breakable
    kept = [d for d in report.layers if d.scheme is None]
    versions = {"trp-onnx": __version__} | {n: metadata.version(n) for n in ("onnx", "onnxruntime", "numpy", "scipy")}
    curve = report.trained.curve if report.trained is not None else ()
    return environment.get_template("report.html.j2").render(
        report=report,
        name=Path(report.model).name,
        headline=_headline(report),
        verdict=verdict(report),
        budget=_budget(report),
        threshold=_threshold(report),
        chains=[chain for decision in report.layers if (chain := chain_of(decision)) is not None],
        cards=_cards(report),
        layers=report.layers,
        kept=kept,
        factorised=len(report.layers) - len(kept),
        timed=any(d.time_before is not None for d in report.layers),
        cost_plot=_svg(partial(_cost_plot, report.layers)),
        spectra={name: _svg(partial(_spectrum_plot, spectrum)) for name, spectrum in report.spectra.items()},
        pareto_plot=_svg(partial(_pareto_plot, report)) if report.candidates else "",
        training_plot=_svg(partial(_training_plot, curve)) if len(curve) > 1 else "",
        command=command,
        versions=versions,
    )


def _breakable(name: str) -> Any:
    """A name that may break behind a slash or a dot, and not inside a word."""
    from markupsafe import Markup, escape

    return Markup(str(escape(printable(name))).replace("/", "/<wbr>").replace(".", ".<wbr>"))


def _budget(report: Report) -> list[str]:
    """What was asked, predicted and measured."""
    latency = report.latency
    if latency is None:
        return []
    found = (("asked", latency.asked), ("predicted", latency.predicted))
    parts = [f"{what} {value:.2f}x" for what, value in found if value is not None]
    if latency.measured is not None:
        speed = latency.measured
        parts.append(f"measured {speed.median:.2f}x ({speed.low:.2f} to {speed.high:.2f})")
    return parts


def _threshold(report: Report) -> str:
    """The loss from which a score is red."""
    metric = report.score.metric if report.score is not None else None
    if metric is None or metric.ruinous is None:
        return ""
    return f"{metric.ruinous:g} {'points' if metric.unit == '%' else metric.unit}".rstrip() + f" of {metric.name}"


def _headline(report: Report) -> str:
    latency = report.latency
    parts = []
    if latency is not None and latency.measured is not None:
        parts.append(f"{latency.measured.median:.2f}x as fast")
    elif latency is not None and latency.predicted is not None:
        parts.append(f"{latency.predicted:.2f}x as fast, predicted")
    parts.append(f"{report.macs.remaining:.0%} of the {'known ' * bool(report.macs.unknown)}MACs")
    if report.score is not None:
        parts.append(f"{report.score.metric.name} {report.score.change}")
    return ", ".join(parts)


def _cards(report: Report) -> list[Card]:
    cards = []
    latency = report.latency
    if latency is not None and latency.measured is not None and latency.milliseconds is not None:
        speed = latency.measured
        before_ms, after_ms = latency.milliseconds
        detail = f"{before_ms:.2f} → {after_ms:.2f} ms; 95 %: {speed.low:.2f} to {speed.high:.2f}"
        good = True if speed.low > 1 else False if speed.high < 1 else None
        cards.append(Card("speed-up, measured", f"{speed.median:.2f}x", detail, good))
    if latency is not None and latency.predicted is not None:
        cards.append(Card("speed-up, predicted", f"{latency.predicted:.2f}x", latency.target))
    if report.score is not None:
        scores, metric = report.score, report.score.metric
        before, after = (metric.text(score.value) for score in (scores.before, scores.after))
        good = None if metric.ruinous is None else scores.lost <= metric.ruinous
        change, _, unit = scores.change.partition(" ± ")
        detail = f"± {unit}; " * bool(unit)
        cards.append(Card(metric.name, change, f"{detail}{before} → {after} on {scores.after.samples} samples", good))
    for title, size in (("MACs", report.macs), ("parameters", report.parameters), ("file", report.file_bytes)):
        title += f" (without {size.unknown} unknown nodes)" * bool(size.unknown)
        cards.append(Card(title, f"{size.remaining:.0%}", f"{si(size.before)} → {si(size.after)}"))
    worst = max((output.relative_error for output in report.outputs), default=0.0)
    cards.append(Card("outputs", f"{worst:.1e}", f"relative error on {report.verified_on}"))
    return cards


def _svg(draw: Callable[[], Figure]) -> str:
    """A figure as SVG without its XML header, text as text."""
    import matplotlib as mpl

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "trp-onnx", "font.family": "sans-serif", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": BEFORE, "xtick.color": QUIET,
        "ytick.color": QUIET,
    }  # fmt: skip
    # Text stays text, drawn with the reader's fonts: what matplotlib's own font lacks does not matter.
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure = draw()
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace("<svg ", '<svg role="img" ', 1)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height))
    return figure, figure.add_subplot()


def _cost_plot(decisions: Sequence[Decision]) -> Figure:
    """Bars by layer: parts of the time where it is known, else of the MACs."""
    timed = any(d.time_before is not None for d in decisions)
    rows = []
    for d in decisions:
        before, after = (d.time_before, d.time_after) if timed else (d.macs_before, d.macs_after)
        if before is not None:
            rows.append((d.name, float(before), float(after if after is not None else before)))
    made = [d.name for d in decisions if d.scheme is not None]
    total = 1.0 if timed else sum(before for _, before, _ in rows) or 1.0
    figure, axes = _figure(8, 0.9 + 0.24 * len(rows))
    places = range(len(rows))
    axes.barh([p - 0.19 for p in places], [100 * r[1] / total for r in rows], 0.36, color=BEFORE, label="before")
    axes.barh([p + 0.19 for p in places], [100 * r[2] / total for r in rows], 0.36, color=AFTER, label="after")
    for bars in axes.containers:
        for bar, (name, _, _) in zip(bars, rows, strict=True):
            if name in made:
                bar.set_url(f"#layer-{made.index(name) + 1}")
    axes.set_yticks(list(places), [_short(name) for name, _, _ in rows])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(f"% of the original network's {'time, by the latency table' if timed else 'MACs'}")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
    return figure


def _spectrum_plot(spectrum: Spectrum) -> Figure:
    figure, axes = _figure(2.6, 1.5)
    ranks, errors = spectrum.points()
    axes.fill_between(ranks, errors, color=BEFORE, alpha=0.35, linewidth=0)
    axes.plot(ranks, errors, color=QUIET, linewidth=1)
    if spectrum.rank is not None:
        axes.axvline(spectrum.rank, color=ACCENT, linewidth=1.4)
        axes.plot([spectrum.rank], [spectrum.errors[spectrum.rank]], "o", color=ACCENT, markersize=4)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, max(spectrum.full_rank, 1))
    axes.set_yticks([0, 0.5, 1])
    axes.set_xticks([0, spectrum.full_rank])
    return figure


def _pareto_plot(report: Report) -> Figure:
    figure, axes = _figure(6, 3.2)
    speeds = [c.speedup for c in report.candidates]
    losses = [c.lost for c in report.candidates]
    axes.plot(speeds, losses, color=BEFORE, linewidth=1, zorder=1)
    axes.scatter(speeds, losses, color=AFTER, zorder=2, label="tried")
    chosen = report.latency.predicted if report.latency is not None else None
    for speed, lost in zip(speeds, losses, strict=True):
        if chosen is not None and abs(speed - chosen) < 1e-9:
            axes.scatter([speed], [lost], color=ACCENT, s=70, zorder=3, label="chosen")
    axes.set_xlabel("speed-up, predicted")
    if report.limit is not None and report.limit.allowed is not None:
        axes.axhline(report.limit.allowed, color=QUIET, linestyle="--", linewidth=1, label="allowed")
    axes.set_ylabel("lost")
    axes.legend(frameon=False)
    return figure


def _training_plot(curve: Sequence[dict[str, Any]]) -> Figure:
    """Loss and validation by epoch, and the MACs that were left."""
    figure, axes = _figure(6, 3.2)
    epochs = [point["epoch"] for point in curve]
    axes.plot(epochs, [point["loss"] for point in curve], color=QUIET, label="loss")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    if all(point["accuracy"] is not None for point in curve):
        right.plot(epochs, [100 * point["accuracy"] for point in curve], color=AFTER, label="validation, %")
    right.plot(epochs, [100 * point["macs"] for point in curve], color=ACCENT, linestyle="--", label="MACs, %")
    right.set_ylim(0, 102)
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], frameon=False, loc="center right")
    return figure


def _short(name: str, limit: int = 34) -> str:
    """A name that fits beside a bar; a dollar sign would start a formula."""
    plain = "".join(c if c.isprintable() else " " for c in name).replace("$", r"\$")
    return plain if len(plain) <= limit else f"…{plain[-limit + 1 :]}"
