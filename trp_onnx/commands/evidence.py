"""What a goal wants to know beyond the weights: times of layers, moments of what flows into them, their damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trp_onnx.calibration.moments import collect_moments
from trp_onnx.commands.workspace import Workspace
from trp_onnx.evaluation.outputs import Told
from trp_onnx.graph.inputs import Samples
from trp_onnx.graph.layers import Layer
from trp_onnx.latency.profiling import measure_table
from trp_onnx.latency.table import LatencyTable
from trp_onnx.planning import Evidence, left_by_budgets, measure_damage, resolve_alignment
from trp_onnx.progress import track

DAMAGE_SAMPLES = 64
"""Samples of those on which damage is measured."""


@dataclass(frozen=True)
class Known:
    """What is known of a network.

    Attributes:
        evidence: What options are judged by.
        align: Ranks are multiples of this.
        samples: What factors are fitted to; None without data, and where training takes it.
    """

    evidence: Evidence
    align: int
    samples: Samples | None = None


def gather(work: Workspace) -> Known:
    """Measure what the goal needs.

    Raises:
        ModelError: The network does not run on the samples.
        DataError: The samples or the latency table do not fit it.
    """
    job = work.job
    table = work.table or (time_layers(work) if job.timed else None)
    align = resolve_alignment(job.search.align)
    if table is not None:
        table.check(work.network.layers)
        align = table.step if job.search.align == "auto" else align
        work.notes += (note for note in table.notes if note not in work.notes)
        work.clock.lap("time")
    left = _left(work, table, align)
    evidence, samples = Evidence(table=table, left=left), None
    judged = [layer for layer in work.network.layers if layer.name not in left]
    if work.samples is not None:
        samples = work.samples.fitting()
        moments = collect_moments(work.network.normal, judged, samples, progress=lambda runs: track(runs, "moments"))
        evidence = replace(evidence, moments=moments)
        work.clock.lap("moments")
    if _by_damage(work):
        evidence = _with_damage(work, evidence, judged, samples)
        work.clock.lap("damage")
    return Known(evidence, align, samples)


def time_layers(work: Workspace) -> LatencyTable:
    """A latency table of this network on this machine."""
    search, rules = work.job.search, work.job.goal.rules
    named = search.scheme if all(rule.scheme is None for rule in rules) else "auto"
    return measure_table(
        work.network.normal, work.network.layers, work.network.feeds(), scheme=named, threads=work.job.device.threads
    )  # fmt: skip


def _by_damage(work: Workspace) -> bool:
    """Whether errors are weighed with what they do to the outputs."""
    by = work.job.search.plan_by
    return by == "outputs" or (by == "auto" and work.samples is not None and work.job.goal.budgeted)


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
        told=Told(work.said, work.samples.labels if work.samples is not None else None),
        progress=lambda groups: track(groups, "damage"),
    )
    return replace(evidence, damage=damage)
