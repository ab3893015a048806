"""The main job: open -> normalise -> find layers -> plan -> (train) -> factorise -> save -> verify -> report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trp_onnx._version import __version__
from trp_onnx.calibration.moments import collect_moments
from trp_onnx.calibration.samples import Samples
from trp_onnx.data import Data, Dataset, Preprocessing, open_data
from trp_onnx.data.feeding import read_inputs
from trp_onnx.errors import OutputError, TargetError, UsageError
from trp_onnx.evaluation.accuracy import Accuracy, check_labels, evaluate
from trp_onnx.evaluation.agreement import Agreement, measure_agreement
from trp_onnx.evaluation.judging import by_accuracy, by_agreement, by_error
from trp_onnx.evaluation.outputs import Told
from trp_onnx.evaluation.verify import MAPPED_FROM, reference_outputs, verify
from trp_onnx.files.paths import MADE_BY, REPORT_FILES, default_output, guard, is_ours
from trp_onnx.files.staging import Staging, files_of, write_text
from trp_onnx.graph.batching import find_batching
from trp_onnx.graph.generating import generate
from trp_onnx.graph.inputs import Run, inputs_of
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import count_parameters, file_bytes, open_model, weight_bytes
from trp_onnx.graph.session import Arrays, feeds_for, open_session
from trp_onnx.graph.sizes import shape_options, sizes_from
from trp_onnx.latency.measured import realise
from trp_onnx.latency.predicted import forecast
from trp_onnx.latency.profiling import measure_table
from trp_onnx.latency.table import LatencyTable, read_table
from trp_onnx.latency.trial import Trial, Trials
from trp_onnx.passes import CleanUpPass, FoldBatchNormPass
from trp_onnx.passes.normalise import normalise
from trp_onnx.planning import (
    Candidate,
    Evidence,
    LayerRule,
    Plan,
    Planner,
    check_rule,
    choose_schemes,
    fastest_within,
    left_by_budgets,
    measure_damage,
    plan_for_speedup,
    plan_to_toml,
    read_rules,
    resolve_alignment,
)
from trp_onnx.planning.apply import carry_out
from trp_onnx.planning.plan import notes_on_growth
from trp_onnx.planning.rules import first_match
from trp_onnx.planning.search import LEAST, Limit
from trp_onnx.progress import collected_notes, note, track
from trp_onnx.report import Loss, Report, Size, alarms, check_page, render_page, spectra_of
from trp_onnx.training.job import RUN_FILES

if TYPE_CHECKING:
    from trp_onnx.training import TrainingOptions
    from trp_onnx.training.run import TrainingRun

logger = logging.getLogger(__name__)

DAMAGE_SAMPLES = 64
"""Samples of those on which damage is measured."""

VERIFY_SAMPLES = 16
"""Samples of the data on which outputs are compared, when there is data."""

AGREEMENT_SAMPLES = 64
"""Samples of the data on which both files' answers are compared, where there is no test data."""


def compress(
    model: str | PathLike[str],
    out: str | PathLike[str] | None = None,
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
    inputs: Data | None = None,
    data: Data | None = None,
    preprocessing: Preprocessing | None = None,
    simplify: bool = True,
    report_dir: str | PathLike[str] | None = None,
    save_plan: str | PathLike[str] | None = None,
    train: TrainingOptions | None = None,
    test: Data | None = None,
    teacher: str | PathLike[str] | None = None,
    run: str | PathLike[str] | None = None,
    resume: bool = False,
    command: str | None = None,
) -> Report:
    """Factorise the layers of an ONNX file and write the result, verified, to another.

    With `data`, factors keep the outputs of their layers on those samples instead of the weights. With `train`,
    the network is first trained on `data` with projection (Trained Rank Pruning), so that factorisation costs
    next to no accuracy.

    Without any rule the plan is the fastest one that keeps the outputs: with `data` the file gives the answers of the
    original on 99 % of held-out samples, without it the outputs move by at most 2 % on generated inputs.

    Nothing appears at `out` before the written file has been opened again, checked and run beside the
    original; the input is never modified.

    Args:
        model: The trained network.
        out: Where the compressed one goes; weights of a large model into `<out>.data` beside it, or
            `<out>.1.data` while the model that is replaced uses that. `<name>.lowrank.onnx`
            beside the model where not given; a file of that name is only replaced if trp-onnx wrote it.
        energy: Discard at most this part of each layer's energy: of its squared singular values, or, with
            `data`, of its outputs.
        macs: Keep at most this part of the network's MACs.
        vbmf: Take ranks from variational Bayes.
        speedup: Make the network this many times as fast, by a latency table, at the least damage.
        max_drop: As fast as can be at so many points less, on samples of `data` that are held out for it: of top-1
            accuracy where they have labels, else of agreement with the original.
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
        inputs: Samples to verify on, whatever `open_data` takes; generated otherwise.
        data: Samples to fit ranks and factors to, whatever `open_data` takes, labels not needed; with `train`, samples
            to train on, or the name of a function, see `training.batches`, and a part of them is held out.
        preprocessing: How samples become inputs.
        simplify: Whether to run onnx-simplifier first.
        report_dir: Where `report.html`, `report.json` and `plan.toml` go; made if it does not exist.
        save_plan: Where the plan goes alone, a TOML file that `config` reads.
        train: How to train; no training where not given.
        test: Samples on which both files are measured once, at the end: their top-1 accuracy where there are
            labels, else how far they agree.
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
    source = Path(model)
    out = _default_output(source) if out is None else Path(out)
    folder = None if train is None else out.with_name(out.name + ".trp-run") if run is None else Path(run)
    guard(
        writes=[*files_of(out), save_plan],
        folders=[(report_dir, REPORT_FILES), (folder, RUN_FILES)],
        reads=[model, config, latency_table, inputs, data, test, teacher],
    )
    clock = _Clock()
    rules = () if config is None else read_rules(Path(config)) if isinstance(config, (str, PathLike)) else config
    rule: dict[str, Any] = {"energy": energy, "macs": macs, "vbmf": vbmf, "speedup": speedup}
    asked = bool(rules) or max_drop is not None or any(not (value is None or value is False) for value in rule.values())
    searched = max_drop is not None or (train is None and not asked)
    if train is None and asked:
        check_rule(**rule, max_drop=max_drop, mapped=bool(rules), scheme=scheme)
    elif train is not None:
        from trp_onnx.training.run import check_trainable, check_training

        check_training(train, **rule, mapped=bool(rules), scheme=scheme)
    _check_usage(plan_by, data is not None, train is not None, max_drop is not None, asymmetric, threads)
    if report_dir is not None:
        check_page()
    block = resolve_alignment(align)
    timed = speedup is not None or searched or latency_table is not None
    table = None if latency_table is None else read_table(Path(latency_table))

    with collected_notes() as notes, ExitStack() as stack:
        original = open_model(source)
        known = inputs_of(original)
        samples = None
        if data is not None and train is None:
            samples = Samples(data, preprocessing, known, holds_out=searched, by_labels=max_drop is not None)
        tested = None if test is None else open_data(test, preprocessing).bound(known)
        if tested is not None and tested.labels is not None:
            check_labels(source, tested)
        if samples is not None and max_drop is not None and samples.held_out.labels is not None:
            check_labels(source, samples.held_out)
        if train is not None:
            check_trainable(original, train)
        staging = stack.enter_context(Staging(out, original))
        session = None
        if train is not None and data is not None and folder is not None:
            from trp_onnx.training.run import TrainingRun

            session = stack.enter_context(
                TrainingRun(
                    folder, data, preprocessing, train, source if teacher is None else Path(teacher),
                    resume=resume, keep=run is not None, inputs=known,
                )
            )  # fmt: skip
        feeds, verified_on = _feeds(source, original, input_shapes, inputs, tested, samples, session)
        if inputs is not None or tested is not None or data is not None:  # what is generated has guessed sizes
            input_shapes = sizes_from(original, feeds, input_shapes, samples=inputs is None)
        expected = reference_outputs(source, original, feeds)
        clock.lap("open")

        normal, found = normalise(original.clone(), input_shapes, simplify=simplify, fold_batch_norm=train is None)
        notes += found
        layers = find_layers(normal, input_shapes)
        untouched = {layer.name for layer in layers if (match := first_match(rules, layer.name)) and match.keep}
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
        budgeted = searched or macs is not None or speedup is not None
        left = (
            left_by_budgets(layers, table, rules=rules, scheme=scheme, align=block)
            if budgeted and data is not None
            else frozenset[str]()
        )
        evidence = Evidence(table=table, left=left)
        judged = [layer for layer in layers if layer.name not in left]
        by_damage = plan_by == "outputs" or (plan_by == "auto" and samples is not None and budgeted)
        x: np.ndarray | None = None
        if samples is not None:
            x = samples.fitting()
            moments = collect_moments(normal, judged, x, progress=lambda batches: track(batches, "moments"))
            evidence = replace(evidence, moments=moments)
            clock.lap("moments")
        if by_damage:
            seen = session.samples(DAMAGE_SAMPLES) if session is not None else x
            assert seen is not None  # planning by outputs needs data
            damage = measure_damage(
                normal,
                judged,
                seen[:DAMAGE_SAMPLES],
                scheme,
                evidence,
                told=Told(labels=samples.labels if samples is not None else None),
                progress=lambda groups: track(groups, "damage"),
            )
            evidence = replace(evidence, damage=damage)
            clock.lap("damage")

        finds_ranks = session is not None and session.finds_ranks(energy, macs)
        tried: tuple[Candidate, ...] = ()
        trials: tuple[Trial, ...] = ()
        limit: Limit | None = None
        if finds_ranks:
            chosen, kept = choose_schemes(layers, rules, scheme), {}
        else:
            planner = Planner(
                layers, rules=rules, scheme=scheme, align=block, evidence=evidence,
                progress=lambda groups: track(groups, "spectra"), ask=shape_options(normal, input_shapes),
            )  # fmt: skip
            if searched:
                judge, limit = _limit(max_drop, source, original, samples, feeds, expected, verified_on)

                def lost(plan: Plan) -> float:
                    with _candidate(
                        plan, normal, input_shapes, evidence, x, asymmetric, untouched, staging.folder
                    ) as path:
                        return judge(path)

                plan, tried = fastest_within(planner, limit, lost)
            elif speedup is not None:
                timing = Trials(source, normal, feeds_for(normal, input_shapes), staging.folder, input_shapes)
                plan, trials = plan_for_speedup(planner, speedup, timing)
            else:
                plan = planner.plan(**rule)
            chosen, kept = plan.chosen, {decision.name: decision.reason for decision in plan.decisions}
        clock.lap("plan")

        if session is not None:
            ahead = forecast(table or measured(), layers, None if finds_ranks else chosen)
            note(ahead)
            layers, plan = session.train(
                normal, layers, chosen, kept, energy=energy, budget=macs, align=block, table=table
            )
            clock.lap("train")

        spectra = {} if report_dir is None else spectra_of(layers, plan.decisions, evidence)
        notes += carry_out(
            plan, normal, layers, evidence, x, staging.keep, asymmetric=asymmetric, untouched=untouched
        )  # fmt: skip
        if session is not None:
            session.finetune(normal)
            FoldBatchNormPass()(normal)
        CleanUpPass()(normal)
        normal.metadata_props[MADE_BY] = __version__
        clock.lap("factorise")

        staging.save(normal)
        if staging.data.exists():
            notes.append(f"the weights are in '{staging.data.name}': it belongs beside '{out.name}'")
        clock.lap("save")

        written, errors = verify(staging.path, source, original, feeds, expected)
        clock.lap("verify")

        accuracy, agreement = _quality(source, staging.path, tested, samples)
        loss = None if limit is None else Loss(limit.measure, limit.allowed, judge(staging.path))
        clock.lap("evaluate")
        latency = realise(table, plan.speedup, source, staging.path, input_shapes, threads).on_the_way(speedup, trials)
        notes += latency.notes()
        if limit is not None and latency.measured is not None and latency.measured.high < LEAST:
            raise TargetError(
                f"{limit.refusal}: the fastest plan within it is predicted to run {plan.speedup or 1.0:.2f}x as fast "
                f"and was measured at {latency.measured.median:.2f}x; nothing was written. {limit.advice}"
            )
        clock.lap("bench")
        trained = session.summary(staging.path) if session is not None else None
        sizes = Size(file_bytes(source), file_bytes(staging.path))
        report = Report(
            model=str(source),
            output=str(out),
            macs=Size(plan.macs_before, plan.macs_after, plan.unknown),
            parameters=Size(count_parameters(original), count_parameters(written)),
            file_bytes=sizes,
            outputs=tuple(errors),
            verified_on=verified_on,
            layers=plan.decisions,
            accuracy_before=accuracy[0] if accuracy else None,
            accuracy_after=accuracy[1] if accuracy else None,
            agreement=agreement,
            loss=loss,
            align=block,
            latency=latency,
            candidates=tried,
            spectra=spectra,
            trained=trained,
            notes=(
                *notes,
                *(e.note for e in errors if e.note),
                *(trained.notes() if trained is not None else ()),
                *plan.notes,
                *notes_on_growth(plan, sizes.before, sizes.after),
                *_notes_on_ends(plan),
            ),
            seconds=clock.laps,
        )
        report = replace(report, warnings=alarms(report))
        del written
        if save_plan is not None:
            write_text(Path(save_plan), plan_to_toml(report.layers))
        staging.publish()
        if session is not None:
            session.remove()
    if report_dir is not None:
        _write_page(Path(report_dir), report, command, out)
    return report


def _default_output(source: Path) -> Path:
    """`NAME.lowrank.onnx` beside the input.

    Raises:
        UsageError: There is such a file, and trp-onnx did not write it.
    """
    out = default_output(source)
    if out.exists() and not is_ours(out):
        raise UsageError(f"'{out}' exists, and trp-onnx did not write it: name another file by -o")
    return out


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


KEPT_AGREEMENT, KEPT_ERROR = 99.0, 2.0
"""Without a rule: per cent of answers that stay the original's, or where there is no data, of relative output error."""


def _limit(
    max_drop: float | None,
    source: Path,
    original: ir.Model,
    samples: Samples | None,
    feeds: Arrays,
    expected: Arrays,
    fed: str,
) -> tuple[Callable[[Path], float], Limit]:
    """How candidates are judged, and what they may lose."""
    if samples is None:
        judge, allowed = by_error(original, feeds, expected, fed), KEPT_ERROR
    elif max_drop is not None and samples.held_out.labels is not None:
        judge, allowed = by_accuracy(source, samples.held_out), max_drop
    else:
        judge, allowed = by_agreement(source, samples.held_out), 100 - KEPT_AGREEMENT if max_drop is None else max_drop
    if max_drop is not None:
        refusal = f"--max-drop {max_drop:g} is out of reach: no plan makes the network faster within it"
        advice = "Training (--train) recovers what factorisation alone loses"
    else:
        refusal = f"no plan makes the network faster and keeps its outputs within {allowed:g} {judge.measure}"
        advice = (
            "Say how far to go, for example --macs 0.7 or --speedup 1.3"
            if samples is not None
            else "Give samples by --data, which keep more, or say how far to go, for example --macs 0.7"
        )
    return judge.lost, Limit(allowed, judge.measure, refusal, advice)


@contextmanager
def _candidate(
    plan: Plan,
    normal: ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None,
    evidence: Evidence,
    x: np.ndarray | None,
    asymmetric: bool,
    untouched: Collection[str],
    folder: Path,
) -> Iterator[Path]:
    """The file of a plan, made as the result would be."""
    copy, path = normal.clone(), folder / "candidate.onnx"
    layers = find_layers(copy, input_shapes)
    carry_out(plan, copy, layers, evidence, x, asymmetric=asymmetric, untouched=untouched)
    CleanUpPass()(copy)
    ir.save(copy, path, format="protobuf", external_data=f"{path.name}.data")  # its own: the input's is elsewhere
    try:
        yield path
    finally:
        for file in folder.glob(f"{path.name}*"):
            file.unlink()


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
    source: Path,
    model: ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None,
    inputs: Data | None,
    tested: Dataset | None,
    samples: Samples | None,
    session: TrainingRun | None,
) -> tuple[Arrays, str]:
    """Inputs for the comparison: given ones, else samples of the data, else generated."""
    if inputs is not None:
        named = f" in {Path(inputs).name}" if isinstance(inputs, (str, PathLike)) else ""
        return read_inputs(model, inputs), f"the inputs{named}"
    dataset = tested or (samples.dataset if samples is not None else None)
    if dataset is None and session is None:
        made = generate(model, input_shapes)
        return made.arrays, f"generated inputs ({made.description})"

    known = inputs_of(model)

    def first(count: int) -> Run:
        if dataset is not None:
            return dataset.take(np.arange(min(count, len(dataset))))[0]
        assert session is not None
        x = session.samples(count)
        return Run(dict.fromkeys(known, x), len(x))

    opened = open_session(source, mapped=weight_bytes(model) > MAPPED_FROM)
    batching = find_batching(opened, first(2), known, most=VERIFY_SAMPLES)
    run = next(batching.split([first(batching.size)]))
    where = Path(dataset.source).name if dataset is not None else "the training data"
    return run.feeds, f"{run.count} sample{'s' * (run.count > 1)} of {where}"


def _quality(
    before: Path, after: Path, tested: Dataset | None, samples: Samples | None
) -> tuple[tuple[Accuracy, Accuracy] | None, Agreement | None]:
    """Accuracy of both files on labelled test samples, else how far they agree on what samples there are."""
    if tested is not None and tested.labels is not None:
        return (evaluate(before, tested), evaluate(after, tested)), None
    if tested is not None:
        note(f"'{tested.source}' has no labels: agreement with the original is measured, not accuracy")
        return None, measure_agreement(before, after, tested)
    if samples is not None:
        return None, measure_agreement(before, after, samples.unfitted(AGREEMENT_SAMPLES))
    return None, None


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


def _write_page(folder: Path, report: Report, command: str | None, out: Path) -> None:
    """The page and what belongs to it; the result itself is in place already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "report.json", report.to_json())
        write_text(folder / "report.html", render_page(report, command))
        write_text(folder / "plan.toml", plan_to_toml(report.layers))
    except KeyboardInterrupt as error:
        error.add_note(f"'{out}' was written, its report was not")
        raise
    except OSError as error:
        raise OutputError(f"'{out}' was written, its report was not: {error.strerror}") from error
    except OutputError as error:
        raise OutputError(f"'{out}' was written, its report was not: {str(error).partition(';')[0]}") from error
