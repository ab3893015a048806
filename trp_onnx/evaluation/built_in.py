"""The built-in metrics, by the names that `--metric` takes.

                unit  reference
top-1, top-5    %     labels     labels that are the largest score, or among the five largest, at each place
miou            %     labels     mean over classes of |A and B| / |A or B|, A where the largest score is the class's, B
                                 where the label is; without labels, where the original's largest score is
agreement       %     original   answers that are the original's, see `divergence`
cosine                original   mean over samples of the cosine of the whole output with the original's
snr             dB    original   20 log10 of |y| / |y - y'| over all samples
relative-error  %     original   |y - y'| / |y| over all samples, lower is better; channels that far larger ones hide
                                 are held to their own spread, of whole numbers the share that differs counts

Those that hold an output against the original's take the worst of several outputs. Sums grow batch by batch: outputs
that do not fit into memory together can be measured.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from trp_onnx.errors import DataError, ModelError
from trp_onnx.evaluation.channels import Channels
from trp_onnx.evaluation.comparison import paired, share, sized
from trp_onnx.evaluation.divergence import agreement_of, without_shared_infinities
from trp_onnx.evaluation.metric import PER_CENT, Metric, Running, Setting
from trp_onnx.evaluation.outputs import Output, OutputKind, counted, is_float, labelled
from trp_onnx.graph.session import Arrays

# --- against labels ---------------------------------------------------------------------------------------------------


class _Labelled(Running):
    """What reads the output that labels speak of."""

    def __init__(self, name: str, setting: Setting) -> None:
        found = labelled(setting.kinds)
        if found is None:
            raise DataError(
                f"the model has no output with one score a class for each label of '{setting.data}', which {name} reads"
            )
        self._name, self._axis, self._setting = found, setting.kinds[found].axis, setting

    def _scores(self, outputs: Arrays, count: int) -> np.ndarray:
        """(b, places, classes)."""
        scores = np.moveaxis(outputs[self._name][:count], self._axis, -1)[..., self._setting.offset :]
        return scores.reshape(len(scores), -1, scores.shape[-1])

    def _labels(self, labels: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(b, places) each: labels, and whether they count."""
        if labels.size != shape[0] * shape[1]:
            raise DataError(
                f"the labels of '{self._setting.data}' are of shape {list(labels.shape[1:])}, the model has "
                f"{shape[1]} scores a class for each sample"
            )
        wanted = counted(labels)
        low, high = (int(end) for end in _ends(labels, wanted))
        if low < 0 or high >= shape[2]:
            raise DataError(
                f"'{self._setting.data}' has label {low if low < 0 else high}, but the model has {shape[2]} classes "
                f"(0 to {shape[2] - 1}): see --label-offset"
            )
        return labels.reshape(shape[:2]), wanted.reshape(shape[:2])

    @property
    def output(self) -> str:
        return self._name if len(self._setting.kinds) > 1 else ""


def _ends(labels: np.ndarray, wanted: np.ndarray) -> tuple[int, int]:
    found = labels[wanted]
    return (found.min(), found.max()) if found.size else (0, 0)


class _TopK(_Labelled):
    """Labels among the k largest scores; of equal ones the first comes first."""

    def __init__(self, k: int, setting: Setting) -> None:
        super().__init__(f"top-{k}", setting)
        self._k, self._right, self._all = k, 0, 0
        self._each: list[np.ndarray] = []

    def update(self, outputs: Arrays, reference: Any, count: int) -> None:
        scores = self._scores(outputs, count)
        labels, wanted = self._labels(np.asarray(reference), scores.shape)
        places = np.where(wanted, labels, 0)[..., None]
        own = np.take_along_axis(scores, places, axis=-1)
        before = (scores > own) | ((scores == own) & (np.arange(scores.shape[-1]) < places))
        right = (before.sum(axis=-1) < self._k) & ~np.isnan(scores).any(axis=-1) & wanted
        self._right, self._all = self._right + int(right.sum()), self._all + int(wanted.sum())
        with np.errstate(invalid="ignore"):  # a sample without labels
            self._each.append(100 * right.sum(axis=1) / wanted.sum(axis=1))

    def result(self) -> float:
        return 100 * self._right / self._all if self._all else math.nan

    @property
    def each(self) -> np.ndarray | None:
        return np.concatenate(self._each) if self._each else None


class _MeanIoU(_Labelled):
    """Mean intersection over union of the classes that either side has."""

    def __init__(self, setting: Setting) -> None:
        if labelled(setting.kinds) is None:
            maps = [name for name, output in setting.kinds.items() if output.chooses]
            setting = setting if not maps else _with_labelled(setting, maps[0])
        super().__init__("miou", setting)
        self._both = self._either = np.zeros(0, np.int64)

    def update(self, outputs: Arrays, reference: Any, count: int) -> None:
        scores = self._scores(outputs, count)
        if isinstance(reference, Mapping):
            labels = self._scores(dict(reference), count).argmax(axis=-1)
            wanted = np.ones(labels.shape, bool)
        else:
            labels, wanted = self._labels(np.asarray(reference), scores.shape)
        classes, answers = scores.shape[-1], scores.argmax(axis=-1)[wanted]
        same = answers[answers == labels[wanted]]
        both, mine, theirs = (np.bincount(side, minlength=classes) for side in (same, answers, labels[wanted]))
        if not len(self._both):
            self._both = self._either = np.zeros(classes, np.int64)
        self._both, self._either = self._both + both, self._either + mine + theirs - both

    def result(self) -> float:
        found = self._either > 0
        return 100 * float((self._both[found] / self._either[found]).mean()) if found.any() else math.nan


def _with_labelled(setting: Setting, name: str) -> Setting:
    return replace(setting, kinds={**setting.kinds, name: replace(setting.kinds[name], labelled=True)}, offset=0)


# --- against the original ---------------------------------------------------------------------------------------------


class _Part(Running):
    """One output beside the original's."""

    def __init__(self, output: Output) -> None:
        self._output, self._total, self._samples = output, 0.0, 0
        self._each: list[np.ndarray] | None = []

    @abstractmethod
    def compare(self, before: np.ndarray, after: np.ndarray, count: int) -> None:
        """Take a batch of both."""

    def update(self, outputs: Any, reference: Any, count: int) -> None:
        self.compare(np.atleast_1d(reference), np.atleast_1d(outputs), count)

    def _add(self, value: float, count: int, each: np.ndarray | None = None) -> None:
        """Count the mean over a batch, and its samples where they can be told apart."""
        self._total, self._samples = self._total + value * count, self._samples + count
        if each is None or len(each) != count:
            self._each = None
        elif self._each is not None:
            self._each.append(each)

    @property
    def _mean(self) -> float:
        return self._total / self._samples if self._samples else 0.0

    @property
    def each(self) -> np.ndarray | None:
        return np.concatenate(self._each) if self._each else None


class _Agreement(_Part):
    """The share of answers that stay, in per cent; of values 100 less their channels' mean error."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._channels = Channels(output.axis)
        self._by_channel = 0

    def compare(self, before: np.ndarray, after: np.ndarray, count: int) -> None:
        if self._output.has_channels and before.shape == after.shape and is_float(before):
            self._channels.add(before, after)
            self._by_channel += count
            self._each = None
            return
        alone = before.shape == after.shape and len(before) == count and self._output.kind is not OutputKind.ITEMS
        if not alone:
            self._add(100 * agreement_of(before, after, self._output), count)
            return
        each = np.array([agreement_of(before[i : i + 1], after[i : i + 1], self._output) for i in range(count)])
        self._add(100 * float(each.mean()), count, 100 * each)

    def result(self) -> float:
        samples = self._samples + self._by_channel
        moved = float(np.clip(1 - self._channels.errors.mean(), 0, 1)) if self._by_channel else 0.0
        return (self._total + 100 * moved * self._by_channel) / samples if samples else 100.0


class _Cosine(_Part):
    """The mean over samples of the cosine of the whole output."""

    @np.errstate(over="ignore", invalid="ignore")  # what is no number has no direction
    def compare(self, before: np.ndarray, after: np.ndarray, count: int) -> None:
        if before.shape != after.shape:
            self._add(0.0, count)
            return
        alone = len(before) == count
        a, b = (
            np.asarray(side, np.float64).reshape(count if alone else 1, -1)
            for side in without_shared_infinities(before, after)
        )
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = np.einsum("ij,ij->i", a, b) / np.where(lengths > 0, lengths, 1)
        each = np.where(lengths > 0, np.nan_to_num(cosines), (a == b).all(axis=1))
        self._add(float(each.mean()), count, each if alone else None)

    def result(self) -> float:
        return self._mean


class _Distance(_Part):
    """In per cent."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._channels = Channels(output.axis if output.has_channels else -1)

    def compare(self, before: np.ndarray, after: np.ndarray, count: int) -> None:
        if not is_float(before):
            self._add(share(before, after, self._output), count)
        elif sized(before, after, self._output):
            a, b = paired(before, after, self._output)
            self._channels.add(a.reshape(-1), b.reshape(-1) if a.shape == b.shape else np.full(a.size, np.inf))
        else:
            self._channels.add(before, after)

    def result(self) -> float:
        return 100 * max(self._mean, self._channels.relative_error, self._channels.hidden_error)


class _Decibels(_Distance):
    """In dB."""

    def result(self) -> float:
        error = self._channels.relative_error
        return math.inf if error == 0 else -20 * math.log10(error) if error < math.inf else -math.inf


class _Worst(Running):
    """Every output beside the original's; the worst counts."""

    def __init__(self, parts: Mapping[str, _Part], worst: Callable[..., str]) -> None:
        self._parts, self._worst = parts, worst

    def update(self, outputs: Arrays, reference: Any, count: int) -> None:
        for name, part in self._parts.items():
            if name in reference:
                part.update(outputs.get(name, np.zeros(0)), reference[name], count)

    def _name(self) -> str:
        values = {name: part.result() for name, part in self._parts.items()}
        return self._worst(values, key=lambda name: values[name])

    def result(self) -> float:
        return self._parts[self._name()].result()

    @property
    def output(self) -> str:
        return self._name() if len(self._parts) > 1 else ""

    @property
    def each(self) -> np.ndarray | None:
        return self._parts[self._name()].each


def _against_original(
    name: str, part: type[_Part], unit: str, *, higher: bool = True, floats_only: bool = False, ruinous: float | None
) -> Metric:  # fmt: skip
    def start(setting: Setting) -> Running:
        kinds = setting.kinds
        parts = {n: part(o) for n, o in kinds.items() if not floats_only or o.kind is not OutputKind.DISCRETE}
        if not parts:
            raise ModelError(f"the model has no output of floats, which {name} wants: take --metric agreement")
        return _Worst(parts, min if higher else max)

    return Metric(name, start, unit, higher, "original", ruinous)


TOP_1 = Metric("top-1", lambda setting: _TopK(1, setting), PER_CENT, ruinous=5.0)
TOP_5 = Metric("top-5", lambda setting: _TopK(5, setting), PER_CENT, ruinous=5.0)
MEAN_IOU = Metric("miou", _MeanIoU, PER_CENT, ruinous=5.0)
AGREEMENT = _against_original("agreement", _Agreement, PER_CENT, ruinous=10.0)
COSINE = _against_original("cosine", _Cosine, "", floats_only=True, ruinous=0.1)
SNR = _against_original("snr", _Decibels, "dB", floats_only=True, ruinous=None)
RELATIVE_ERROR = _against_original("relative-error", _Distance, PER_CENT, higher=False, ruinous=40.0)

BUILT_IN: Mapping[str, Metric] = {
    metric.name: metric for metric in (TOP_1, TOP_5, MEAN_IOU, AGREEMENT, COSINE, SNR, RELATIVE_ERROR)
}
