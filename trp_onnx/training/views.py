"""Which changes of samples leave them what the original knows: it answers the changed ones much as it answers them.

A mirrored dog is a dog; a mirrored line of text is nothing that a reader was ever shown.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trp_onnx.evaluation.divergence import agreement
from trp_onnx.evaluation.outputs import Told, joined, output_kinds
from trp_onnx.graph.batching import find_batching
from trp_onnx.graph.inputs import Inputs, Run
from trp_onnx.graph.session import open_session, run_session
from trp_onnx.training.options import View
from trp_onnx.training.run import TrainingRun

_VIEWS: tuple[View, ...] = ("crop", "flip", "color")
_ALIKE = 0.7
"""What is tried, and the agreement of the answers from which on it is used."""


def safe_views(training: TrainingRun, source: Path, inputs: Inputs, told: Told) -> tuple[View, ...]:
    """Names of `Augmentation` that may be used on the data of a training.

    Args:
        training: The training.
        source: The original.
        inputs: Its inputs.
        told: What is known of its outputs, see `output_kinds`.

    Raises:
        ModelError: It does not run.
    """
    session, plain = open_session(source), training.viewed(())
    batching = find_batching(session, plain[0], inputs)

    def answers(runs: list[Run]) -> dict[str, np.ndarray | list[np.ndarray]]:
        parts = list(batching.split(runs))
        return joined((part.counted(run_session(session, part.feeds)) for part in parts), [p.count for p in parts])

    expected = answers(plain)
    kinds, found = output_kinds(None, expected, told), []
    for name in _VIEWS:
        viewed = training.viewed((name,))
        if _differ(plain, viewed) and agreement(expected, answers(viewed), kinds) >= _ALIKE:
            found.append(name)
    return tuple(found)


def _differ(some: list[Run], others: list[Run]) -> bool:
    pairs = zip(some, others, strict=True)
    return any(not np.array_equal(one.feeds[name], other.feeds[name]) for one, other in pairs for name in one.feeds)
