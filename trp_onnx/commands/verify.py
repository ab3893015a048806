"""`trp-onnx verify`: measure a written file again, and say what still holds of what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_onnx.data import Data, Preprocessing, open_data
from trp_onnx.errors import ModelError, UsageError, VerificationError
from trp_onnx.evaluation.evaluate import evaluate
from trp_onnx.evaluation.metric import Asked, Score
from trp_onnx.evaluation.verify import reference_outputs
from trp_onnx.evaluation.verify import verify as compare_outputs
from trp_onnx.graph.fingerprint import file_hash, fingerprint
from trp_onnx.graph.generating import generate
from trp_onnx.graph.inputs import inputs_of
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import Arrays, run_model
from trp_onnx.latency.measured import SHORT, realise
from trp_onnx.progress import at_work
from trp_onnx.report.card import model_card
from trp_onnx.report.record import Measured, Record, read_record
from trp_onnx.rows import Headlined, Row, shortened
from trp_onnx.schema import Document, path_of

SAMPLES = 16
"""On which outputs are compared."""

SLACK = 1.25
"""An output may move by so many times what was recorded: the samples may be others."""

FLOAT_NOISE = 1e-4
"""An output error below this is rounding, which differs between processors."""


@dataclass(frozen=True)
class Check:
    """One claim of the record.

    Attributes:
        what: The claim.
        recorded: What the record says.
        now: What was measured, or why nothing was.
        holds: Whether it still holds; None where that cannot be told.
    """

    what: str
    recorded: str
    now: str
    holds: bool | None


@dataclass(frozen=True, repr=False)
class Verified(Headlined, Document):
    """What still holds of what a file says of itself.

    Attributes:
        model: The file.
        record: What it says.
        checks: Claim by claim.
        notes: What a reader should know.
    """

    model: str
    record: Record
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing was found that no longer holds."""
        return all(check.holds is not False for check in self.checks)

    def headline(self) -> list[Sequence[str]]:
        """Claim by claim."""
        words = {True: "holds", False: "does NOT hold", None: "not checked"}
        rows = [Row(check.what, check.recorded, check.now, words[check.holds]) for check in self.checks]
        return [Row("", "recorded", "now", ""), *shortened(rows)]

    def card(self) -> str:
        """A model card in Markdown, see `model_card`."""
        return model_card(self.record, Path(self.model))


def verify(
    model: str | PathLike[str],
    *,
    original: str | PathLike[str] | None = None,
    data: Data | None = None,
    preprocessing: Preprocessing | None = None,
    metric: Asked | None = None,
) -> Verified:
    """Measure a file that `compress` wrote again, and hold it against the record in its metadata.

    The record is self-reported: who can change the network can change the record. With the original and samples nothing
    needs to be believed.

    Args:
        model: The file.
        original: What it was made of; outputs and time are compared with it.
        data: Samples, whatever `open_data` takes; with labels where the record's metric wants them.
        preprocessing: How samples become inputs.
        metric: What is counted on them; the record's own where not given.

    Raises:
        ModelError: The file holds no record, or a file cannot be read or run.
        DataError: The samples cannot be read or do not fit.
        UsageError: The metric is none.
    """
    path = path_of(model, "the model")
    source = None if original is None else path_of(original, "the original")
    with at_work() as notes:
        opened = open_model(path)
        record = read_record(path, opened)
        checks = [
            _same("the network", record.fingerprint, fingerprint(opened), "unchanged", "changed since it was measured")
        ]
        feeds = _feeds(opened, record, data, preprocessing)
        if source is None:
            checks += [_runs(path, feeds), *_unchecked(record, data)]
        else:
            checks.append(_same("the original", record.source_sha256, file_hash(source), record.source, "another file"))
            checks += _outputs(record, path, source, feeds, sampled=data is not None)
            checks += _speed(record, path, source)
        if data is not None and record.score is not None:
            checks.append(_score(record.score, path, source, data, preprocessing, metric))
    return Verified(str(path), record, tuple(checks), tuple(notes))


def _same(what: str, recorded: str, now: str, same: str, other: str) -> Check:
    return Check(what, recorded[:12], same if recorded == now else f"{other} ({now[:12]})", recorded == now)


def _feeds(model: ir.Model, record: Record, data: Data | None, preprocessing: Preprocessing | None) -> Arrays:
    if data is None:
        return generate(model, {} if record.speed is None else record.speed.input_shapes).arrays
    samples = open_data(data, preprocessing).bound(inputs_of(model))
    return samples.take(np.arange(min(SAMPLES, len(samples))))[0].feeds


def _runs(path: Path, feeds: Arrays) -> Check:
    """Alone a file can show that it runs, and gives numbers."""
    try:
        outputs = run_model(path, feeds)
    except ModelError as error:
        return Check("it runs", "yes", str(error), False)
    sound = all(np.isfinite(array).all() for array in outputs.values() if array.dtype.kind == "f")
    return Check("it runs", "yes", "yes" if sound else "it gives NaN or infinity", sound)


def _unchecked(record: Record, data: Data | None) -> list[Check]:
    """What the record claims beside, which takes more than the file."""
    checks = [Check("outputs", f"{record.outputs[0].after:.2e}" if record.outputs else "", "give --original", None)]
    if record.speed is not None:
        checks.append(Check("speed", f"{record.speed.median:.2f}x", "give --original", None))
    if record.score is not None and data is None:
        checks.append(Check(record.score.name, f"{record.score.after:.2f}", "give --data", None))
    return checks


def _outputs(record: Record, path: Path, source: Path, feeds: Arrays, *, sampled: bool) -> list[Check]:
    """The error of each output; comparable where both were fed the same kind of inputs."""
    opened = open_model(source)
    try:
        _, found = compare_outputs(path, source, opened, feeds, reference_outputs(source, opened, feeds))
    except VerificationError as error:
        return [Check("outputs", "as the original's", str(error), False)]
    alike = sampled != record.verified_on.startswith("generated")
    errors = {output.name: output.relative_error for output in found}
    return [
        Check(
            f"output '{was.name}'", f"{was.after:.2e}", f"{errors.get(was.name, float('inf')):.2e}"
            + ("" if alike else f"; not on {record.verified_on}"),
            errors.get(was.name, float("inf")) <= SLACK * was.after + FLOAT_NOISE if alike else None,
        )
        for was in record.outputs
    ]  # fmt: skip


def _speed(record: Record, path: Path, source: Path) -> list[Check]:
    """Times say something on the machine and the runtime on which they were taken."""
    was = record.speed
    if was is None:
        return []
    found = realise(None, None, source, path, was.input_shapes, was.threads)
    if found.measured is None:
        return [Check("speed", f"{was.median:.2f}x", "cannot be measured here", None)]
    now = f"{found.measured.median:.2f}x ({found.measured.low:.2f}-{found.measured.high:.2f})"
    if found.target != was.target:
        return [Check("speed", f"{was.median:.2f}x on {was.target}", f"{now} on {found.target}", None)]
    return [Check("speed", f"{was.median:.2f}x", now, found.measured.high >= (1 - SHORT) * was.low)]


def _score(
    was: Measured, path: Path, source: Path | None, data: Data, preprocessing: Preprocessing | None,
    metric: Asked | None,
) -> Check:  # fmt: skip
    """The score again; on other samples it may differ by twice its standard error."""
    try:
        chosen = was.name if metric is None else metric
        if source is None:
            found: Score = evaluate(path, data, metric=chosen, preprocessing=preprocessing)
        else:
            found = evaluate(path, data, metric=chosen, against=source, preprocessing=preprocessing).after
    except UsageError as error:
        return Check(was.name, f"{was.after:.2f}", f"{error}", None)
    shown = replace(found, notes=())
    fallen = (was.after - found.value) * (1 if was.higher_is_better else -1)
    allowed = 2 * (found.standard_error or 0.0) + 1e-3 * abs(was.after)
    comparable = found.metric.name == was.name
    return Check(was.name, f"{was.after:.2f} on {was.on}", str(shown), fallen <= allowed if comparable else None)
