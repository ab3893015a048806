"""How far a file gives the answers of the original: needs samples, no labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trp_onnx.data import Dataset
from trp_onnx.errors import ModelError
from trp_onnx.evaluation.divergence import AGREEMENT_NAMES, agreements
from trp_onnx.evaluation.outputs import ClassLabels, Told, joined, output_kinds
from trp_onnx.graph.batching import find_batching
from trp_onnx.graph.inputs import inputs_of
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import Arrays, open_session, run_session
from trp_onnx.progress import track

_BATCH, _MEMORY = 64, 256 << 20
"""Samples of a run at most, and bytes of outputs that are held against each other at once."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two files' outputs.

    Attributes:
        value: 0 to 1; of several outputs the least.
        what: What is counted, for people: "top-1 answers that agree".
        samples: Samples that both ran on.
        source: Where those come from.
    """

    value: float
    what: str
    samples: int
    source: str


def measure_agreement(before: Path, after: Path, dataset: Dataset) -> Agreement:
    """Run both files on the samples.

    What is counted follows from what the original's outputs are (see `outputs`). Outputs that do not fit into memory
    together are compared in parts, and the mean over the samples counts.

    Args:
        before: The original.
        after: The other file, of the same interface.
        dataset: The samples; labels only say whether outputs are scores of classes.

    Raises:
        ModelError: A file does not run, or has no output that can be compared.
        DataError: The samples do not fit the model.
    """
    model = open_model(before)
    sessions = open_session(before), open_session(after)
    inputs = inputs_of(model)
    dataset = dataset.bound(inputs)
    told = Told(labels=ClassLabels.of(dataset.labels, dataset.preprocessing.label_offset))
    first = dataset.take(np.arange(min(2, len(dataset))))[0]
    batching = find_batching(sessions[0], first, inputs, most=_BATCH, memory=_MEMORY // 4)
    totals: dict[str, float] = {}
    kinds = None
    runs: list[tuple[Arrays, Arrays, int]] = []
    held = done = 0
    for run, _ in track(dataset.runs(batching), "comparing answers", -(-len(dataset) // batching.size)):
        expected, actual = (run.counted(run_session(session, run.feeds)) for session in sessions)
        runs.append((expected, actual, run.count))
        held += sum(2 * np.asarray(value).nbytes for value in expected.values())
        done += run.count
        if held < _MEMORY and done < len(dataset):
            continue
        counts = [count for _, _, count in runs]
        wanted, found = joined([run for run, _, _ in runs], counts), joined([run for _, run, _ in runs], counts)
        kinds = output_kinds(model, wanted, told) if kinds is None else kinds
        for name, value in agreements(wanted, found, kinds).items():
            totals[name] = totals.get(name, 0.0) + value * sum(counts)
        runs, held = [], 0
    if not totals or kinds is None:
        raise ModelError(f"'{before}' has no output that can be compared")
    worst = min(totals, key=lambda name: totals[name])
    return Agreement(totals[worst] / done, AGREEMENT_NAMES[kinds[worst].kind], done, dataset.source)
