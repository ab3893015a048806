"""`report.json`: the schema, and the numbers it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trp_onnx._version import __version__
from trp_onnx.evaluation.comparison import OutputDifference
from trp_onnx.evaluation.metric import Scores, finite
from trp_onnx.files.paths import REPORT_FILES, cannot_write, guard
from trp_onnx.files.staging import write_text
from trp_onnx.latency.measured import Latency
from trp_onnx.planning import Candidate, Decision, SpaceDecision
from trp_onnx.planning.rules import plan_to_toml
from trp_onnx.printable import printable
from trp_onnx.report.spectra import Spectrum
from trp_onnx.rows import Headlined, Row, in_bytes, si
from trp_onnx.schema import Document, path_of, plain

if TYPE_CHECKING:
    from trp_onnx.training.recovery import Recovered
    from trp_onnx.training.run import Trained


@dataclass(frozen=True)
class Size:
    """One quantity before and after.

    Attributes:
        before: Of the input.
        after: Of the result.
        unknown: Nodes that are in neither number, because nothing is known of theirs.
    """

    before: int
    after: int
    unknown: int = 0

    @property
    def remaining(self) -> float:
        """What remains of what is known: after / before."""
        return self.after / self.before if self.before else 1.0

    @property
    def ratio(self) -> float | None:
        """What remains of the whole network; None where a part of it is unknown."""
        return None if self.unknown else self.remaining

    def to_dict(self) -> dict[str, float | None]:
        """As it stands in the report."""
        sizes: dict[str, float | None] = {"before": self.before, "after": self.after, "ratio": self.ratio}
        if self.unknown:
            sizes |= {"unknown_nodes": self.unknown, "ratio_of_the_known": self.remaining}
        return sizes


@dataclass(frozen=True, repr=False)
class Report(Headlined, Document):
    """The result of one compression; `to_dict` is `report.json`.

    Attributes:
        model: The input file.
        output: The written file.
        macs: Multiply-accumulates of one run of the network.
        parameters: Entries of all float tensors.
        file_bytes: Size of the file with its external data.
        files: The files that were written, and the bytes of each; none where the result is in memory.
        outputs: How far each output moved on the verification inputs.
        verified_on: What those inputs were.
        layers: A decision for every layer.
        spaces: A decision for every space of channels, where these were looked at.
        score: What both files score on the test samples, else on samples of the data; None where there are none.
        limit: What both score on what chose the plan, and what may be lost, where a limit chose it.
        align: Ranks are multiples of this.
        latency: Time against the original's: measured, and predicted where there is a latency table.
        candidates: What was tried to find the fastest plan within the limit.
        spectra: What each layer loses at every rank.
        trained: What training came to, when there was any.
        recovered: What recovery came to, when there was any.
        warnings: Why this result may be of no use (see `alarms`).
        notes: What the owner should know.
        seconds: Wall time of each phase.
        date: When the file was measured, in UTC.
        source_sha256: Hash of the original's file.
        fingerprint: Hash of the network that was written, see `graph.fingerprint`.
    """

    model: str
    output: str
    macs: Size
    parameters: Size
    file_bytes: Size
    outputs: tuple[OutputDifference, ...]
    verified_on: str
    layers: tuple[Decision, ...]
    spaces: tuple[SpaceDecision, ...] = ()
    files: dict[str, int] = field(default_factory=dict)
    score: Scores | None = None
    limit: Scores | None = None
    align: int = 1
    latency: Latency | None = None
    candidates: tuple[Candidate, ...] = ()
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    trained: Trained | None = None
    recovered: Recovered | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    date: str = ""
    source_sha256: str = ""
    fingerprint: str = ""

    def headline(self) -> list[Row]:
        """What matters: its name, before, after, and how they compare."""
        rows = [
            Row("", "before", "after", "ratio"),
            *(
                Row(name, si(size.before), si(size.after), f"{size.remaining:.3f}")
                for name, size in (("MACs", self.macs), ("file bytes", self.file_bytes))
            ),
        ]
        if self.latency is not None:
            rows.append(self.latency_row(self.latency))
        rows.append(self.score_row())
        return rows

    @property
    def written_to(self) -> str:
        """A clause: where the result is, with all its files and their sizes."""
        folder = Path(self.output).parent
        files = [f"{folder / name} ({in_bytes(size)})" for name, size in self.files.items()]
        return f"written to {' and '.join(files) or self.output}"

    @staticmethod
    def latency_row(latency: Latency) -> Row:
        """Time as it was measured, else as it is predicted."""
        if latency.measured is None or latency.milliseconds is None:
            return Row("time, predicted", "", "", f"{latency.predicted or 1.0:.2f}x as fast")
        before, after = (f"{ms:.2f} ms" for ms in latency.milliseconds)
        speed = latency.measured
        return Row("time", before, after, f"{speed.median:.2f}x as fast ({speed.low:.2f}-{speed.high:.2f})")

    def score_row(self) -> Row:
        """What is closest to the task: a score, else the error of the outputs."""
        if self.score is not None:
            metric = self.score.metric
            before, after = (metric.text(score.value) for score in (self.score.before, self.score.after))
            return Row(f"{printable(metric.name)} of {self.score.after.samples}", before, after, self.score.change)
        worst = max(self.outputs, key=lambda output: output.relative_error)
        return Row(f"output '{printable(worst.name)}'", "", f"{worst.relative_error:.2e}", worst.measure)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        document: dict[str, Any] = {
            "tool": {"trp-onnx": __version__} | {n: metadata.version(n) for n in ("onnx", "onnxruntime", "numpy")},
            "date": self.date,
            "model": self.model,
            "source_sha256": self.source_sha256,
            "fingerprint": self.fingerprint,
            "output": self.output,
            "macs": self.macs.to_dict(),
            "parameters": self.parameters.to_dict(),
            "file_bytes": self.file_bytes.to_dict(),
            "files": [{"file": name, "bytes": size} for name, size in self.files.items()],
            "verified_on": self.verified_on,
            "outputs": plain(self.outputs),
            "align": self.align,
            "layers": [_layer(decision) for decision in self.layers],
            "spaces": [_space(decision) for decision in self.spaces],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }
        scores = {"score": self.score, "limit": self.limit}
        document |= {name: found.to_dict() for name, found in scores.items() if found is not None}
        if self.candidates:  # one that gives no numbers loses infinitely much, which JSON does not know
            document["candidates"] = [plain(tried) | {"lost": finite(tried.lost)} for tried in self.candidates]
        found = {"latency": self.latency, "training": self.trained, "recovery": self.recovered}
        return document | {name: plain(part) for name, part in found.items() if part is not None}

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, folder: str | PathLike[str], command: str | None = None) -> None:
        """Write `report.html`, `report.json` and `plan.toml` into a folder, which is made if it does not exist.

        Args:
            folder: The folder.
            command: How to repeat the compression, for the page.

        Raises:
            UsageError: What draws the page is not installed, or a file would replace the network, or
                a plan that is no report's.
            OutputError: A file cannot be written.
        """
        from trp_onnx.report.page import check_page, render_page

        check_page()
        place = path_of(folder, "the folder")
        guard(folders=[(place, REPORT_FILES)], reads=[self.model, self.output])
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(place, error) from error
        write_text(place / "report.json", self.to_json())
        write_text(place / "report.html", render_page(self, command))
        write_text(place / "plan.toml", plan_to_toml(self.layers, self.spaces))


def _layer(decision: Decision) -> dict[str, Any]:
    """A decision; the rank is a number for a pair and [r_in, r_out] for Tucker-2."""
    entry: dict[str, Any] = plain(decision)
    if decision.rank is not None:
        entry["rank"] = decision.rank[0] if len(decision.rank) == 1 else list(decision.rank)
    return entry


def _space(decision: SpaceDecision) -> dict[str, Any]:
    """A decision; which units stay, in what basis, is the plan's to know."""
    entry: dict[str, Any] = plain(decision)
    del entry["stays"], entry["basis"]
    return entry
