"""The main job: open -> normalise -> find layers -> plan -> (train) -> factorise -> save -> verify -> report."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trp_onnx.accuracy import Accuracy, as_feed, evaluate
from trp_onnx.carrying_out import carry_out
from trp_onnx.data import Dataset, Preprocessing, open_data, read_npz
from trp_onnx.errors import DataError, OutputError, UsageError
from trp_onnx.latency.forecast import forecast
from trp_onnx.latency.profiling import measure_table
from trp_onnx.latency.realised import realise
from trp_onnx.latency.table import LatencyTable, read_table
from trp_onnx.layers import find_layers
from trp_onnx.model import (
    Staging,
    check_distinct,
    check_folder,
    check_target,
    count_parameters,
    file_bytes,
    open_model,
    write_text,
)
from trp_onnx.moments import collect_moments
from trp_onnx.normalise import normalise
from trp_onnx.passes import CleanUpPass, FoldBatchNormPass
from trp_onnx.planning import (
    Candidate,
    Evidence,
    LayerRule,
    Plan,
    Planner,
    check_rule,
    choose_schemes,
    fastest_within,
    measure_damage,
    plan_to_toml,
    read_rules,
    resolve_alignment,
)
from trp_onnx.planning.rules import first_match
from trp_onnx.progress import say, track
from trp_onnx.report import Report, Size, check_page, render_page, spectra_of
from trp_onnx.runtime import Arrays, feeds_for
from trp_onnx.samples import Samples
from trp_onnx.sizes import real_inputs, shape_options
from trp_onnx.verify import reference_outputs, verify

if TYPE_CHECKING:
    from trp_onnx.training import TrainingOptions

logger = logging.getLogger(__name__)

DAMAGE_SAMPLES = 64
"""Samples of those on which damage is measured."""

VERIFY_SAMPLES = 16
"""Samples of the data on which outputs are compared, when there is data."""


def compress(
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    energy: float | None = None,
    macs: float | None = None,
    vbmf: bool = False,
    speedup: float | None = None,
    max_drop: float | None = None,
    config: str | PathLike[str] | Sequence[LayerRule] | None = None,
    scheme: str = "auto",
    align: int | str = "auto",
    plan_by: str = "auto",
    latency_table: str | PathLike[str] | None = None,
    threads: int = 1,
    asymmetric: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: str | PathLike[str] | None = None,
    data: str | PathLike[str] | Dataset | None = None,
    preprocessing: Preprocessing | None = None,
    simplify: bool = True,
    report_dir: str | PathLike[str] | None = None,
    save_plan: str | PathLike[str] | None = None,
    train: TrainingOptions | None = None,
    test: str | PathLike[str] | Dataset | None = None,
    teacher: str | PathLike[str] | None = None,
    run: str | PathLike[str] | None = None,
    resume: bool = False,
    command: str | None = None,
) -> Report:
    """Factorise the layers of an ONNX file and write the result, verified, to another.

    With `data`, factors keep the outputs of their layers on those samples instead of the weights. With `train`,
    the network is first trained on `data` with projection (Trained Rank Pruning), so that factorisation costs
    next to no accuracy.

    Nothing appears at `out` before the written file has been opened again, checked and run beside the
    original; the input is never modified.

    Args:
        model: The trained network.
        out: Where the compressed one goes; weights of a large model into `<out>.data` beside it.
        energy: Discard at most this part of each layer's energy: of its squared singular values, or, with
            `data`, of its outputs.
        macs: Keep at most this part of the network's MACs.
        vbmf: Take ranks from variational Bayes.
        speedup: Make the network this many times as fast, by a latency table, at the least damage.
        max_drop: As fast as can be at so many points less of top-1 accuracy, on labelled samples of `data`
            that are held out for it.
        config: The per-layer map, a TOML file (see `planning.rules`) or rules.
        scheme: "auto", "spatial", "spatial-mirror", "channel", "channel-mirror", "tucker2" or "svd".
        align: Ranks are multiples of this many channels; "auto" takes the step of the latency table, or the SIMD
            block of this CPU.
        plan_by: What a budget's allocation makes least: relative errors ("weights"), or the damage they do to the
            "outputs", measured on samples of `data` (labels are not looked at); "auto" is outputs where there
            is data that nothing is trained on.
        latency_table: A table that `profile` wrote, here or on another machine; measured here where not given.
        threads: Intra-op threads that the speed-up is meant for.
        asymmetric: Whether each layer, those that stay dense too, is fitted to the inputs that the layers compressed
            before it give, and makes up for their errors; needs `data`, and takes longer. Layers that `config`
            keeps stay as they are.
        input_shapes: Shapes for inputs with dynamic sizes, by name. A symbolic batch counts as 1.
        inputs: An `.npz` with one array for each input, to verify on; generated otherwise.
        data: Samples to fit ranks and factors to, labels not needed; with `train`, samples to train on, or the name
            of a function, "pkg.module:function", see `training.batches`, and a part of them is held out.
        preprocessing: How samples become inputs.
        simplify: Whether to run onnx-simplifier first.
        report_dir: Where `report.html`, `report.json` and `plan.toml` go; made if it does not exist.
        save_plan: Where the plan goes alone, a TOML file that `config` reads.
        train: How to train; no training where not given.
        test: Labelled samples, on which the accuracy of both files is measured once, at the end.
        teacher: Another ONNX file whose outputs are the ones to learn; the model itself otherwise.
        run: Folder for the checkpoints, kept afterwards; `<out>.trp-run`, removed on success, otherwise.
        resume: Go on with the training that was interrupted there.
        command: How to repeat this, for the report.

    Returns:
        What was gained and lost.

    Raises:
        ModelError: The model cannot be read, run or factorised.
        DataError: The data or the latency table cannot be read or does not fit.
        OutputError: The result cannot be written.
        VerificationError: The written file failed its check; it was removed.
        UsageError: The options contradict each other or the model.
        TrainingError: Training cannot start, or diverged, or a worker died.
        TargetError: The target is out of reach; nothing was written.
    """
    source, out = Path(model), Path(out)
    check_target(out)
    check_distinct([out, save_plan], [model, config, latency_table, inputs, data, test, teacher])
    clock = _Clock()
    rules = () if config is None else read_rules(Path(config)) if isinstance(config, (str, PathLike)) else config
    rule: dict[str, Any] = {"energy": energy, "macs": macs, "vbmf": vbmf, "speedup": speedup}
    if train is None:
        check_rule(**rule, max_drop=max_drop, mapped=bool(rules), scheme=scheme)
    _check_usage(plan_by, data is not None, train is not None, max_drop is not None, asymmetric, threads)
    if save_plan is not None:
        check_target(Path(save_plan))
    if report_dir is not None:
        check_page()
        check_folder(Path(report_dir))
    block = resolve_alignment(align)
    timed = speedup is not None or max_drop is not None or latency_table is not None
    table = None if latency_table is None else read_table(Path(latency_table))
    samples = Samples(data, preprocessing, max_drop is not None) if data is not None and train is None else None
    tested = open_data(Path(test), preprocessing) if isinstance(test, (str, PathLike)) else test

    original = open_model(source)
    feeds, verified_on = _feeds(
        original, input_shapes, inputs, tested or (samples.dataset if samples is not None else None)
    )
    with Staging(out, source, original) as staging, ExitStack() as stack:
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
        untouched = {layer.name for layer in layers if (found := first_match(rules, layer.name)) and found.keep}
        clock.lap("normalise")

        def measured() -> LatencyTable:
            named = scheme if all(rule.scheme is None for rule in rules) else "auto"
            return measure_table(normal, layers, feeds_for(normal, input_shapes), scheme=named, threads=threads)

        if timed and table is None:
            table = measured()
        if table is not None:
            table.check(layers)
            block = table.step if align == "auto" else block
            notes += table.notes
            clock.lap("time")
        evidence = Evidence(table=table)
        feels = plan_by == "outputs" or (
            plan_by == "auto" and samples is not None and bool(macs or speedup or max_drop)
        )
        if samples is not None:
            x = samples.fitting(original)
            moments = collect_moments(normal, layers, x, progress=lambda batches: track(batches, "moments"))
            evidence = replace(evidence, moments=moments)
            clock.lap("moments")
        if feels and session is not None:
            x = session.samples(DAMAGE_SAMPLES)
        if feels:
            damage = measure_damage(
                normal,
                layers,
                x[:DAMAGE_SAMPLES],
                scheme,
                evidence.moments,
                classes=samples.classes if samples is not None else 0,
                progress=lambda groups: track(groups, "damage"),
            )
            evidence = replace(evidence, damage=damage)
            clock.lap("damage")

        finds_ranks = session is not None and session.finds_ranks(energy, macs)
        candidates: tuple[Candidate, ...] = ()
        if finds_ranks:
            if speedup is not None:
                raise UsageError("this strategy finds ranks itself: it goes with --macs or --energy")
            chosen, kept = choose_schemes(layers, rules, scheme), {}
        else:
            check_rule(**rule, max_drop=max_drop, mapped=bool(rules), scheme=scheme)
            planner = Planner(
                layers, rules=rules, scheme=scheme, align=block, evidence=evidence,
                progress=lambda groups: track(groups, "spectra"), ask=shape_options(normal, input_shapes),
            )  # fmt: skip
            if max_drop is not None and samples is not None:
                plan, candidates = _search(
                    planner, max_drop, source, normal, input_shapes, samples.judging,
                    x, asymmetric, untouched, staging.folder,
                )  # fmt: skip
            else:
                plan = planner.plan(**rule)
            chosen, kept = plan.chosen, {decision.name: decision.reason for decision in plan.decisions}
        clock.lap("plan")

        if session is not None:
            ahead = forecast(table or measured(), layers, None if finds_ranks else chosen)
            say(ahead)
            notes.append(ahead)
            layers, plan = session.train(
                normal, layers, chosen, kept, energy=energy, budget=macs, align=block, table=table
            )
            clock.lap("train")

        spectra = {} if report_dir is None else spectra_of(layers, plan.decisions, evidence)
        notes += carry_out(
            plan, normal, layers, evidence, x if samples is not None else None, staging.keep,
            asymmetric=asymmetric, untouched=untouched,
        )  # fmt: skip
        if session is not None:
            session.finetune(normal)
            FoldBatchNormPass()(normal)
        CleanUpPass()(normal)
        clock.lap("factorise")

        staging.save(normal)
        clock.lap("save")

        written, errors = verify(staging.path, source, original, feeds, expected)
        clock.lap("verify")

        accuracy = _accuracy(source, staging.path, tested)
        clock.lap("evaluate")
        latency = None if table is None else realise(table, plan.speedup, source, staging.path, input_shapes)
        clock.lap("bench")
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
            align=block,
            latency=latency,
            candidates=candidates,
            spectra=spectra,
            trained=trained,
            notes=(
                *notes,
                *(e.note for e in errors if e.note),
                *(trained.notes() if trained is not None else ()),
                *plan.notes,
                *_notes_on_ends(plan),
            ),
            seconds=clock.laps,
        )
        del written
        if save_plan is not None:
            write_text(Path(save_plan), plan_to_toml(report.layers))
        staging.publish()
        if session is not None:
            session.remove()
    if report_dir is not None:
        try:
            _write_report(Path(report_dir), report, command)
        except KeyboardInterrupt as error:
            error.add_note(f"'{out}' was written, its report was not")
            raise
        except OSError as error:
            raise OutputError(f"'{out}' was written, its report was not: {error.strerror}") from error
        except OutputError as error:
            raise OutputError(f"'{out}' was written, its report was not: {str(error).partition(';')[0]}") from error
    return report


def _check_usage(plan_by: str, data: bool, train: bool, max_drop: bool, asymmetric: bool, threads: int) -> None:
    if plan_by not in ("auto", "weights", "outputs"):
        raise UsageError(f"--plan-by is auto, weights or outputs, not '{plan_by}'")
    if threads < 1:
        raise UsageError(f"--threads is a whole number from 1, not {threads}")
    if (train or max_drop or plan_by == "outputs") and not data:
        raise UsageError("training, --max-drop and planning by outputs need data: give --data")
    if asymmetric and (train or not data):
        raise UsageError("--asymmetric fits factors to --data, without --train")
    if train and max_drop:
        raise UsageError("--max-drop chooses among plans that need no training; with --train give --speedup or --macs")


def _search(
    planner: Planner,
    max_drop: float,
    source: Path,
    normal: ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None,
    judging: Dataset,
    x: np.ndarray,
    asymmetric: bool,
    untouched: Collection[str],
    folder: Path,
) -> tuple[Plan, tuple[Candidate, ...]]:
    """The fastest plan within a drop: candidates are written as the result would be, and run on held-out samples."""

    def accuracy(plan: Plan) -> Accuracy:
        copy, path = normal.clone(), folder / "candidate.onnx"
        layers = find_layers(copy, input_shapes)
        carry_out(plan, copy, layers, planner.evidence, x, asymmetric=asymmetric, untouched=untouched)
        CleanUpPass()(copy)
        ir.save(copy, path, format="protobuf", external_data=f"{path.name}.data")  # its own: the input's is elsewhere
        try:
            return evaluate(path, judging)
        finally:
            for file in folder.glob(f"{path.name}*"):
                file.unlink()

    return fastest_within(planner, max_drop, evaluate(source, judging), accuracy)


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


def _write_report(folder: Path, report: Report, command: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.json", report.to_json())
    write_text(folder / "report.html", render_page(report, command))
    write_text(folder / "plan.toml", plan_to_toml(report.layers))
