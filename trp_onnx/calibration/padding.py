"""Samples without their padding, where an input says what that is.

Positions that only fill a batch up are no data: moments that count them fit factors to what nobody reads. An input that
is called a mask and holds 1 for what counts and 0 behind it tells the length of each sample. All inputs are cut there
along the axes that have the name of the mask's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.graph.inputs import InputSpec, Run, Samples, part_of
from trp_onnx.graph.model import to_proto
from trp_onnx.graph.session import open_session, run_session
from trp_onnx.progress import note

GROUP = 32
"""Samples that are cut to one length, at least: those of equal shapes are run together."""


def without_padding(model: ir.Model, samples: Samples) -> Samples:
    """Cut most of the padding off, where there is some and the model runs on what is left.

    Args:
        model: Not changed.
        samples: As it takes them.
    """
    mask = next((spec for spec in samples.inputs.values() if _is_mask(spec, samples.runs)), None)
    if mask is None or any(spec.sizes is None for spec in samples.inputs.values()):
        return samples
    each = [part_of(samples.inputs, run, slice(i, i + 1)) for run in samples.runs for i in range(run.count)]
    lengths = np.array([max(1, len(np.trim_zeros(run.feeds[mask.name][0], "b"))) for run in each])
    sizes = np.array([run.feeds[mask.name].shape[1] for run in each])
    if (lengths == sizes).all():
        return samples
    ordered = np.sort(lengths)
    levels = np.append(ordered[GROUP - 1 :: GROUP], ordered[-1])
    kept = levels[np.searchsorted(levels, lengths)]
    cut = Samples(samples.inputs, [_cut(samples, mask, run, int(size)) for run, size in zip(each, kept, strict=True)])
    try:
        run_session(open_session(to_proto(model, apart=True)), cut.runs[int(np.argmin(kept))].feeds)
    except ModelError:  # it takes this length alone, whatever it declares
        return samples
    note(f"{1 - lengths.sum() / sizes.sum():.0%} of the data is padding by '{mask.name}': what is fitted leaves it out")
    return cut


def _is_mask(spec: InputSpec, runs: Sequence[Run]) -> bool:
    """Whether an input has the name, the sizes (batch, SYMBOL) and the values of a mask."""
    if "mask" not in spec.name.lower() or not spec.whole or spec.axis != 0:
        return False
    named = spec.sizes is not None and len(spec.sizes) == 2 and isinstance(spec.sizes[1], str)
    return named and all(np.isin(run.feeds[spec.name], (0, 1)).all() for run in runs)


def _cut(samples: Samples, mask: InputSpec, run: Run, size: int) -> Run:
    """A sample of at most so many positions along the axis of the mask."""
    assert mask.sizes is not None
    feeds = {}
    for name, array in run.feeds.items():
        sizes = samples.inputs[name].sizes or ()
        feeds[name] = array[tuple(slice(size) if axis == mask.sizes[1] else slice(None) for axis in sizes)]
    return Run(feeds, run.count)
