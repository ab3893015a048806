"""What a written model says of itself, in its metadata: its plan, its source, what was measured, and on what."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import onnx
import onnx_ir as ir

from trp_onnx._version import __version__
from trp_onnx.errors import ModelError
from trp_onnx.files.paths import cannot_write
from trp_onnx.graph.fingerprint import fingerprint
from trp_onnx.planning.rules import plan_to_toml
from trp_onnx.report.document import Report
from trp_onnx.schema import Document, converted

RECORD = "trp_onnx.record"
"""Key of the metadata."""


@dataclass(frozen=True)
class Measured:
    """A value before and after.

    Attributes:
        name: What was measured: a metric, or an output.
        after: Of the written file.
        before: Of the original; None where it says nothing.
        unit: Of both.
        samples: How many samples it is of.
        on: Where those come from.
        higher_is_better: Its direction.
    """

    name: str
    after: float
    before: float | None = None
    unit: str = ""
    samples: int = 0
    on: str = ""
    higher_is_better: bool = True


@dataclass(frozen=True)
class Speed:
    """Times as fast as the original.

    Attributes:
        target: Processor, runtime, provider and threads.
        median: Over the rounds of an interleaved run.
        low: Lower end of its 95 % interval.
        high: Upper end.
        threads: Intra-op threads.
        asked: What was asked for.
        input_shapes: Sizes of the inputs that were dynamic.
    """

    target: str
    median: float
    low: float
    high: float
    threads: int = 1
    asked: float | None = None
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Record(Document):
    """What was measured of a written file.

    Attributes:
        date: When, in UTC.
        versions: Of the packages that made it.
        source: The original's file name.
        source_sha256: Hash of the original's file.
        fingerprint: Hash of the network that was written, see `graph.fingerprint`.
        plan: What became of each layer, as a file for `--config`.
        macs: Before and after.
        parameters: Before and after.
        verified_on: What the outputs were compared on.
        outputs: The relative error of each output.
        score: What both files score; None where there were no samples.
        speed: None where nothing was timed.
    """

    date: str
    versions: dict[str, str]
    source: str
    source_sha256: str
    fingerprint: str
    plan: str
    macs: tuple[int, int]
    parameters: tuple[int, int]
    verified_on: str
    outputs: tuple[Measured, ...]
    score: Measured | None = None
    speed: Speed | None = None


def record_of(
    report: Report, source_sha256: str, written: ir.Model, threads: int, input_shapes: dict[str, tuple[int, ...]]
) -> Record:
    """The record of a file that was measured, and opened again."""
    score, latency = report.score, report.latency
    return Record(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"trp-onnx": __version__} | {n: metadata.version(n) for n in ("onnx", "onnxruntime", "numpy")},
        source=Path(report.model).name,
        source_sha256=source_sha256,
        fingerprint=fingerprint(written),
        plan=plan_to_toml(report.layers),
        macs=(report.macs.before, report.macs.after),
        parameters=(report.parameters.before, report.parameters.after),
        verified_on=report.verified_on,
        outputs=tuple(Measured(o.name, o.relative_error, unit=o.measure) for o in report.outputs),
        score=None if score is None else Measured(
            score.metric.name, score.after.value, score.before.value, score.metric.unit, score.after.samples,
            score.after.on, score.metric.higher_is_better,
        ),
        speed=None if latency is None or latency.measured is None else Speed(
            latency.target, latency.measured.median, latency.measured.low, latency.measured.high, threads,
            latency.asked, input_shapes,
        ),
    )  # fmt: skip


def write_record(path: Path, record: Record) -> None:
    """Add the record to a file that was written, and to nothing else of it.

    Messages of protobuf that follow one another are one message: the metadata are appended, the rest stays as measured.

    Raises:
        OutputError: The disk is full.
    """
    entry = onnx.StringStringEntryProto(key=RECORD, value=json.dumps(record.to_dict()))
    try:
        with path.open("ab") as file:
            file.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())
    except OSError as error:
        raise cannot_write(path, error) from error


def read_record(path: Path, model: ir.Model) -> Record:
    """What a file says of itself.

    Raises:
        ModelError: Nothing, or something that cannot be read.
    """
    text = model.metadata_props.get(RECORD)
    if text is None:
        raise ModelError(f"'{path}' holds no record of what was measured: compress writes one into what it makes")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ModelError(f"the record in '{path}' is damaged: {error}") from error
    return converted(values, Record, f"the record in '{path}'", ModelError)
