"""Tables for the terminal: what was exported, int8 beside float, what a file says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from trp_onnx.edge import Export
from trp_onnx.printable import printable
from trp_onnx.quantization import Quantized
from trp_onnx.report.tables import plain
from trp_onnx.rows import si

if TYPE_CHECKING:
    from trp_onnx.commands.verify import Verified


def export_tables(export: Export) -> list[Table | Text]:
    """The files, what phones take of the model, and advice on its layers."""
    files = _table("file", "bytes", "sha256")
    for file in export.manifest["files"]:
        files.add_row(plain(file["file"]), si(file["bytes"]), file["sha256"][:16])
    compared = export.manifest["comparison"]
    worst = max(compared["relative_errors"].values(), default=0.0)
    compared_line = f"relative error against the source {worst:.1e}, tolerance {compared['tolerance']:g}"
    phones = _table("provider", "worth trying", "nodes", "groups", "left to the CPU")
    for found in export.usability:
        left = [*found.missing, *([f"{found.dynamic} nodes of dynamic size"] if found.dynamic else [])]
        phones.add_row(
            found.provider,
            found.verdict + (f" ({found.when_fixed} if fixed)" if found.dynamic else ""),
            f"{found.taken} of {found.nodes}",
            str(found.groups),
            ", ".join(left),
        )
    tables: list[Table | Text] = [files, Text(compared_line), *([phones] if export.usability else [])]
    if export.advice:
        advice = _table("layers", "for", "advice")
        grouped: dict[tuple[str, str], list[str]] = {}
        for entry in export.advice:
            grouped.setdefault((entry.provider, entry.text), []).append(entry.layer)
        for (provider, text), layers in grouped.items():
            more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
            advice.add_row(plain(layers[0]) + more, provider, text)
        tables.append(advice)
    return tables


def quantized_tables(quantized: Quantized, *, layers: bool = True) -> list[Table | Text]:
    """Float and int8 side by side, and the layers that stayed in float."""
    scores = [variant.score for variant in quantized.variants if variant.score is not None]
    counted = plain(scores[0].metric.name) if scores else "score"
    variants = _table("model", "bytes", counted, "ms", "speed-up", "95 %")
    for variant in quantized.variants:
        ratio = variant.ratio
        variants.add_row(
            variant.name, si(variant.bytes), variant.score.metric.text(variant.score.value) if variant.score else "-",
            f"{variant.milliseconds:.3f}", f"{ratio.median:.3f}x", f"{ratio.low:.3f}-{ratio.high:.3f}",
        )  # fmt: skip
    summary = f"{quantized.layers} layers in int8; on held-out samples {quantized.measure}"
    tables: list[Table | Text] = [variants, Text(summary)]
    if quantized.in_float and layers:
        kept = _table("in float", "why")
        for layer in quantized.in_float:
            kept.add_row(plain(layer.layer), layer.reason)
        tables.append(kept)
    return tables


def verified_tables(verified: Verified, *, all_: bool = True) -> list[Table | Text]:
    """Claim by claim, or those that do not hold."""
    table = _table("", "recorded", "now", "")
    for check in verified.checks:
        words = {True: "holds", False: "[bold red]does not hold[/]", None: "[dim]not checked[/]"}
        if all_ or check.holds is False:
            table.add_row(plain(check.what), plain(check.recorded), plain(check.now), words[check.holds])
    record = verified.record
    about = f"{printable(verified.model)}, made of {printable(record.source)}, {record.date}"
    return [*([table] if table.row_count else []), *([Text(about, style="dim italic")] if all_ else [])]


def _table(*headings: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
