"""The main job: open -> normalise -> find layers -> plan -> (train) -> factorise -> verify -> save -> report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trp_onnx.accuracy import Accuracy, as_feed, evaluate
from trp_onnx.data import Dataset, Preprocessing, open_data, read_npz
from trp_onnx.errors import DataError, OutputError, UsageError
from trp_onnx.layers import find_layers
from trp_onnx.model import Staging, count_parameters, file_bytes, open_model, write_text
from trp_onnx.normalise import normalise
from trp_onnx.passes import CleanUpPass, FactorisePass, FoldBatchNormPass
from trp_onnx.planning import (
    LayerRule,
    Plan,
    choose_schemes,
    make_plan,
    measure_damage,
    read_rules,
    resolve_alignment,
)
from trp_onnx.progress import track
from trp_onnx.report import Report, Size
from trp_onnx.runtime import Arrays, feeds_for
from trp_onnx.shapes import real_inputs
from trp_onnx.verify import reference_outputs, verify

if TYPE_CHECKING:
    from trp_onnx.training import TrainingOptions

logger = logging.getLogger(__name__)

PLAN_SAMPLES = 256
"""Samples of the data on which damage is measured."""

VERIFY_SAMPLES = 16
"""Samples of the data on which outputs are compared, when there is data."""


def compress(
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    energy: float | None = None,
    macs: float | None = None,
    vbmf: bool = False,
    config: str | PathLike[str] | Sequence[LayerRule] | None = None,
    scheme: str = "auto",
    align: int | str = "auto",
    plan_by: str = "weights",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: str | PathLike[str] | None = None,
    data: str | PathLike[str] | Dataset | None = None,
    preprocessing: Preprocessing | None = None,
    simplify: bool = True,
    report_dir: str | PathLike[str] | None = None,
    train: TrainingOptions | None = None,
    test: str | PathLike[str] | Dataset | None = None,
    teacher: str | PathLike[str] | None = None,
    run: str | PathLike[str] | None = None,
    resume: bool = False,
) -> Report:
    """Factorise the layers of an ONNX file and write the result, verified, to another.

    With `train`, the network is first trained on `data` with projection (Trained Rank Pruning), so that
    factorisation costs next to no accuracy.

    Nothing appears at `out` before the written file has been opened again, checked and run beside the
    original; the input is never modified.

    Args:
        model: The trained network.
        out: Where the compressed one goes; weights of a large model into `<out>.data` beside it.
        energy: Discard at most this part of each layer's squared singular values.
        macs: Keep at most this part of the network's MACs.
        vbmf: Take ranks from variational Bayes.
        config: The per-layer map, a TOML file (see `planning.rules`) or rules.
        scheme: "auto", "spatial", "spatial-mirror", "channel", "channel-mirror", "tucker2" or "svd".
        align: Ranks are multiples of this many channels; "auto" takes the SIMD block of this CPU.
        plan_by: What a budget's allocation makes least: relative errors of "weights", or their damage to the
            "outputs", measured on samples of `data` (labels are not looked at).
        input_shapes: Shapes for inputs with dynamic sizes, by name. A symbolic batch counts as 1.
        inputs: An `.npz` with one array for each input, to verify on; generated otherwise.
        data: Samples to train on, or the name of a function, "pkg.module:function", see `training.batches`; a
            part of them is held out to choose the best weights. Without `train` they only measure, like `test`.
        preprocessing: How samples become inputs.
        simplify: Whether to run onnx-simplifier first.
        report_dir: Where `report.json` goes; made if it does not exist.
        train: How to train; no training where not given.
        test: Labelled samples, on which the accuracy of both files is measured once, at the end.
        teacher: Another ONNX file whose outputs are the ones to learn; the model itself otherwise.
        run: Folder for the checkpoints, kept afterwards; `<out>.trp-run`, removed on success, otherwise.
        resume: Go on with the training that was interrupted there.

    Returns:
        What was gained and lost.

    Raises:
        ModelError: The model cannot be read, run or factorised.
        DataError: The data cannot be read or does not fit.
        OutputError: The result cannot be written.
        VerificationError: The written file failed its check; it was removed.
        UsageError: The options contradict each other or the model.
        TrainingError: Training cannot start, or diverged, or a worker died.
        TargetError: The target is out of reach; nothing was written.
    """
    source, out = Path(model), Path(out)
    clock = _Clock()
    rules = () if config is None else read_rules(Path(config)) if isinstance(config, (str, PathLike)) else config
    step = resolve_alignment(align)
    if plan_by not in ("weights", "outputs"):
        raise UsageError(f"--plan-by is weights or outputs, not '{plan_by}'")
    learns = train is not None or plan_by == "outputs"
    if learns and data is None:
        raise UsageError("training and planning by outputs need data: give --data")
    measured = test if test is not None or learns else data
    dataset = open_data(Path(measured), preprocessing) if isinstance(measured, (str, PathLike)) else measured

    original = open_model(source)
    feeds, verified_on = _feeds(original, input_shapes, inputs, dataset)
    with ExitStack() as stack:
        staging = stack.enter_context(Staging(out, source, original))
        session = None
        if train is not None and data is not None:
            from trp_onnx.training.run import TrainingRun

            folder = Path(run) if run is not None else out.with_name(out.name + ".trp-run")
            session = stack.enter_context(
                TrainingRun(
                    folder, data, preprocessing, train, source if teacher is None else Path(teacher),
                    resume=resume, keep=run is not None,
                )
            )  # fmt: skip
        expected = reference_outputs(source, original, feeds)
        clock.lap("open")

        normal, notes = normalise(original.clone(), input_shapes, simplify=simplify, fold_batch_norm=train is None)
        layers = find_layers(normal, input_shapes)
        clock.lap("normalise")

        finds_ranks = session is not None and session.finds_ranks(energy, macs)
        if finds_ranks:
            chosen, kept = choose_schemes(layers, rules, scheme), {}
        else:
            damage = None
            if plan_by == "outputs" and data is not None:
                x = session.samples(PLAN_SAMPLES) if session is not None else _samples(original, data, preprocessing)
                damage = measure_damage(normal, layers, x, scheme, progress=lambda groups: track(groups, "damage"))
            plan = make_plan(
                layers, energy=energy, macs=macs, vbmf=vbmf, rules=rules, scheme=scheme, align=step, damage=damage,
                progress=lambda groups: track(groups, "spectra"),
            )  # fmt: skip
            chosen, kept = plan.chosen, {decision.name: decision.reason for decision in plan.decisions}
        clock.lap("plan")

        if session is not None:
            layers, plan = session.train(normal, layers, chosen, kept, energy=energy, budget=macs, align=step)
            clock.lap("train")

        FactorisePass(layers, plan.chosen, staging.keep, lambda layers: track(layers, "factorising"))(normal)
        if session is not None:
            session.finetune(normal)
            FoldBatchNormPass()(normal)
        CleanUpPass()(normal)
        clock.lap("factorise")

        staging.save(normal)
        clock.lap("save")

        written, errors = verify(staging.path, source, original, feeds, expected)
        clock.lap("verify")

        accuracy = _accuracy(source, staging.path, dataset)
        clock.lap("evaluate")
        trained = session.summary(staging.path) if session is not None else None
        report = Report(
            model=str(source),
            output=str(out),
            macs=Size(plan.macs_before, plan.macs_after),
            parameters=Size(count_parameters(original), count_parameters(written)),
            file_bytes=Size(file_bytes(source), file_bytes(staging.path)),
            outputs=tuple(errors),
            verified_on=verified_on,
            layers=plan.decisions,
            accuracy_before=accuracy[0] if accuracy else None,
            accuracy_after=accuracy[1] if accuracy else None,
            align=step,
            trained=trained,
            notes=(*notes, *(trained.notes() if trained is not None else ()), *plan.notes, *_notes_on_ends(plan)),
            seconds=clock.laps,
        )
        del written
        staging.publish()
        if session is not None:
            session.remove()
    if report_dir is not None:
        _write_report(Path(report_dir), report)
    return report


def _samples(
    model: ir.Model, data: str | PathLike[str] | Dataset, preprocessing: Preprocessing | None
) -> np.ndarray:  # fmt: skip
    """Samples to plan on, in the type that the model takes: (b, ...)."""
    dataset = data if isinstance(data, Dataset) else open_data(Path(data), preprocessing)
    count = min(PLAN_SAMPLES, len(dataset))
    (x,) = as_feed(model, dataset.take(np.random.default_rng(0).permutation(len(dataset))[:count])[0]).values()
    return np.ascontiguousarray(x)


class _Clock:
    """Wall seconds of each phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
        logger.info("%s: %.2f s", name, self.laps[name])


def _feeds(
    model: ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None,
    inputs: str | PathLike[str] | None,
    dataset: Dataset | None,
) -> tuple[Arrays, str]:
    """Inputs for the comparison: given ones, else samples of the data, else generated."""
    if inputs is not None:
        return _given_inputs(model, Path(inputs)), f"the inputs in {Path(inputs).name}"
    if dataset is not None:
        first = real_inputs(model)[0]
        batch = first.shape[0] if first.shape is not None and len(first.shape) else None
        count = batch if isinstance(batch, int) else min(VERIFY_SAMPLES, len(dataset))
        x, _ = next(dataset.batches(count))
        return as_feed(model, x), f"{len(x)} samples of {Path(dataset.source).name}"
    return feeds_for(model, input_shapes), "generated inputs (standard normal)"


def _given_inputs(model: ir.Model, path: Path) -> Arrays:
    feeds = read_npz(path)
    missing = [value.name for value in real_inputs(model) if value.name not in feeds]
    if missing:
        raise DataError(f"'{path}' has no array for input '{missing[0]}'")
    return feeds


def _accuracy(before: Path, after: Path, dataset: Dataset | None) -> tuple[Accuracy, Accuracy] | None:
    if dataset is None or dataset.labels is None:
        return None
    return evaluate(before, dataset), evaluate(after, dataset)


def _notes_on_ends(plan: Plan) -> list[str]:
    """What the first and the last layer cost: they carry little of the MACs and much of the accuracy."""
    notes = []
    for decision in plan.decisions:
        if not decision.role or decision.scheme is None or not decision.macs_before:
            continue
        end = "first" if decision.role == "stem" else "last"
        saved = (decision.macs_before - (decision.macs_after or 0)) / max(1, plan.macs_before)
        notes.append(
            f"the {end} layer '{decision.name}' was factorised: it saves {saved:.1%} of the network's MACs for a "
            f"weight error of {decision.relative_error:.1%}; keep = true in --config leaves it as it is"
        )
    return notes


def _write_report(folder: Path, report: Report) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the report folder '{folder}': {error.strerror}") from error
    write_text(folder / "report.json", report.to_json())
