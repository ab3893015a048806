"""What a goal wants to know beyond the weights: times of layers, moments of what flows into them, their damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trp_onnx.calibration.moments import collect_moments
from trp_onnx.calibration.padding import without_padding
from trp_onnx.commands.workspace import Workspace
from trp_onnx.errors import UsageError
from trp_onnx.evaluation.outputs import OutputKind, output_kinds
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.layers import Layer
from trp_onnx.graph.spaces import Space, find_spaces
from trp_onnx.job import Device
from trp_onnx.latency.profiling import measure_table
from trp_onnx.latency.table import LatencyTable
from trp_onnx.planning import (
    Evidence,
    SpaceRule,
    left_by_budgets,
    measure_damage,
    measure_space_damage,
    resolve_alignment,
)
from trp_onnx.planning.rules import check_all_match, space_match
from trp_onnx.planning.spaces import SpaceSite, cuts_to_measure, survey_spaces
from trp_onnx.planning.widths import Widths
from trp_onnx.progress import note, track

DAMAGE_SAMPLES = 64
"""Samples of those on which damage is measured."""


_FOR_INT8 = (
    "this plan is one for int8, and so are the times, of both networks: the file that is written is in float32 until "
    "trp-onnx quantize takes it"
)


@dataclass(frozen=True)
class Known:
    """What is known of a network.

    Attributes:
        evidence: What options are judged by.
        align: Ranks are multiples of this.
        samples: What factors are fitted to; None without data, and where training takes it.
        apart: Samples of the same that nothing is fitted to, where spaces may be cut.
        spaces: What may be cut, and what that does.
        looked_at: All spaces of the network, where they were looked at.
    """

    evidence: Evidence
    align: int
    samples: Samples | None = None
    spaces: tuple[SpaceSite, ...] = ()
    apart: Samples | None = None
    looked_at: tuple[Space, ...] = ()


def gather(work: Workspace) -> Known:
    """Measure what the goal needs.

    Raises:
        ModelError: The network does not run on the samples.
        DataError: The samples or the latency table do not fit it.
    """
    job = work.job
    found, spaces = _spaces(work)
    table = work.table or (time_layers(work, spaces) if job.timed else None)
    align = resolve_alignment(job.search.align)
    if table is not None:
        table.check(work.network.layers)
        _check_precision(table, job.device)
        if job.device.int8:
            work.notes.append(_FOR_INT8)
        align = table.step if job.search.align == "auto" else align
        work.notes += (note for note in table.notes if note not in work.notes)
        work.clock.lap("time")
    left = _left(work, table, align)
    evidence, samples, apart = Evidence(table=table, left=left), None, None
    reading = {consumer.layer.name for space in spaces for consumer in space.consumers}
    judged = [layer for layer in work.network.layers if layer.name not in left]
    if work.samples is not None:
        whole = samples = without_padding(work.network.normal, work.samples.fitting())
        seen = [layer for layer in work.network.layers if layer.name not in left or layer.name in reading]
        # What cutting does is told by samples that no refit has seen: a few hundred can be fitted by heart.
        count = min(DAMAGE_SAMPLES, len(whole) // 4) if any(space.closed is None for space in spaces) else 0
        apart, samples = (whole.first(count), whole.after(count)) if count else (None, whole)
        moments = collect_moments(
            work.network.normal, seen, samples, beside=apart, progress=lambda runs: track(runs, "moments")
        )
        evidence = replace(evidence, moments=moments)
        work.clock.lap("moments")
    sites = survey_spaces(spaces, evidence.moments, align, job.goal.rules)
    if job.by_outputs:
        _note_values(work)
        evidence = _with_damage(work, evidence, judged, apart or samples)
        sites = _with_space_damage(work, evidence, sites, apart)
        work.clock.lap("damage")
    return Known(evidence, align, samples, tuple(sites), apart, tuple(found))


def _note_values(work: Workspace) -> None:
    """Say which outputs may be scores of classes, and are taken for numbers."""
    kinds = output_kinds(work.network.original, work.expected, work.told)
    for name, output in kinds.items():
        value = work.expected[name]
        rows = not isinstance(value, list) and value.ndim == 2 and value.shape[1] > 1
        if rows and output.kind is OutputKind.VALUES and name not in work.said:
            note(
                f"output '{name}' is taken for {value.shape[1]} numbers, each as important as the others; where they "
                f"are scores of classes, say --output-kind {name}:scores: the plan then keeps the answers"
            )


def _check_precision(table: LatencyTable, device: Device) -> None:
    """Refuse a table of other kernels."""
    has, wanted = table.target.precision, device.precision
    if has != wanted:
        int8 = "--for-int8" if wanted == "float" else "without --target arm"
        said = {"float": "without --for-int8", "int8": int8, "int8-signed": "--for-int8 and --target arm"}
        raise UsageError(
            f"the latency table has the times of {has}, and the plan is to be one for {wanted}: compress "
            f"{said[has]}, or measure with trp-onnx profile --precision {wanted}"
        )


def _spaces(work: Workspace) -> tuple[list[Space], list[Space]]:
    """All spaces, where they are looked at, and those that may be cut.

    Within a budget these are the open ones of a network with data, else those that the map speaks of.
    """
    job, network = work.job, work.network
    asked = [rule for rule in job.goal.rules if isinstance(rule, SpaceRule)]
    free = job.search.cuts and job.data is not None and job.training is None and job.goal.budgeted
    if not asked and not free:
        return [], []
    found = find_spaces(network.normal, network.layers, network.input_shapes, network.shapes)
    check_all_match(asked, (), [space.name for space in found])
    return found, [s for s in found if space_match(asked, s.name) or (free and s.closed is None)]


def _with_space_damage(
    work: Workspace, evidence: Evidence, sites: Sequence[SpaceSite], samples: Samples | None
) -> list[SpaceSite]:
    """The spaces with what their cuts do to the outputs."""
    choice = [site for site in sites if len(site.levels) > 1]
    if not choice or samples is None:
        return list(sites)
    damage = measure_space_damage(
        work.network.normal,
        {site.space.name: cuts_to_measure(site, evidence.moments) for site in choice},
        samples,
        told=work.told,
        progress=lambda names: track(names, "damage of spaces"),
    )
    return [replace(site, damage=damage.get(site.space.name)) for site in sites]


def time_layers(work: Workspace, spaces: Sequence[Space] = ()) -> LatencyTable:
    """A latency table of this network on this machine, with the widths of what stands at some spaces."""
    search, rules = work.job.search, work.job.goal.rules
    named = search.scheme if all(getattr(rule, "scheme", None) is None for rule in rules) else "auto"
    return measure_table(
        work.network.normal, work.network.layers, work.network.feeds(), scheme=named, threads=work.job.device.threads,
        widths=Widths(spaces).layers,
        precision=work.job.device.precision,
    )  # fmt: skip


def _left(work: Workspace, table: LatencyTable | None, align: int) -> frozenset[str]:
    """Names of the layers that no budget changes, of which nothing needs to be measured."""
    job = work.job
    if job.data is None or not job.goal.budgeted:
        return frozenset()
    return left_by_budgets(work.network.layers, table, rules=job.goal.rules, scheme=job.search.scheme, align=align)


def _with_damage(work: Workspace, evidence: Evidence, layers: Sequence[Layer], samples: Samples | None) -> Evidence:
    seen = work.session.samples(DAMAGE_SAMPLES) if work.session is not None else samples
    assert seen is not None  # planning by outputs needs data
    damage = measure_damage(
        work.network.normal,
        layers,
        seen.first(DAMAGE_SAMPLES),
        work.job.search.scheme,
        evidence,
        told=work.told,
        progress=lambda groups: track(groups, "damage"),
    )
    return replace(evidence, damage=damage)
