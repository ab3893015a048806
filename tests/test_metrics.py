"""Metrics: the built-in ones against other implementations, streaming against all at once, and a user's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from scipy.spatial import distance
from sklearn.metrics import accuracy_score, jaccard_score, top_k_accuracy_score

from tests.graphs import rng
from trp_onnx.errors import DataError, ModelError, UsageError
from trp_onnx.evaluation.built_in import BUILT_IN
from trp_onnx.evaluation.metric import Score, Scores, Setting, as_metric, metric
from trp_onnx.evaluation.outputs import ClassLabels, Told, output_kinds, read_said

Arrays = Mapping[str, np.ndarray]

LOGITS = rng().standard_normal((60, 10)).astype(np.float32)
LABELS = np.where(rng(1).random(60) < 0.7, LOGITS.argmax(axis=1), rng(2).integers(0, 10, 60))


def measure(
    asked: object, outputs: Arrays, reference: np.ndarray | Arrays, *, size: int = 60, said: tuple[str, ...] = ()
) -> float:
    """The value of a metric that sees `size` samples at once."""
    found = as_metric(asked, BUILT_IN)
    labels = reference if isinstance(reference, np.ndarray) else None
    original = outputs if labels is not None else reference
    kinds = output_kinds(None, original, Told(read_said(said), ClassLabels.of(labels)))
    count = len(next(iter(outputs.values())))
    running = found.start(Setting(kinds, count))
    for start in range(0, count, size):
        piece = slice(start, min(start + size, count))
        held = reference[piece] if labels is not None else {n: a[piece] for n, a in reference.items()}
        running.update({n: a[piece] for n, a in outputs.items()}, held, piece.stop - piece.start)
    each = running.each
    assert each is None or each.mean() == pytest.approx(running.result(), nan_ok=True)
    return running.result()


def both_ways(asked: object, outputs: Arrays, reference: np.ndarray | Arrays, **more: tuple[str, ...]) -> float:
    """The same, batch by batch as all at once."""
    whole = measure(asked, outputs, reference, **more)
    for size in (1, 7, 32):
        assert measure(asked, outputs, reference, size=size, **more) == pytest.approx(whole, rel=1e-6)
    return whole


def test_top_1_and_top_5() -> None:
    outputs = {"features": rng(4).standard_normal((60, 4)), "y": LOGITS}
    assert both_ways("top-1", outputs, LABELS) == pytest.approx(100 * accuracy_score(LABELS, LOGITS.argmax(axis=1)))
    expected = top_k_accuracy_score(LABELS, LOGITS, k=5, labels=np.arange(10))
    assert both_ways("top-5", outputs, LABELS) == pytest.approx(100 * expected)
    assert both_ways("top-1", {"y": np.full((60, 10), np.nan)}, LABELS) == 0
    assert both_ways("top-1", {"y": np.zeros((60, 10))}, LABELS) == pytest.approx(100 * (LABELS == 0).mean())


def test_top_1_of_tokens_and_pixels() -> None:
    tokens = rng().standard_normal((60, 5, 12))
    labels = np.where(rng(1).random((60, 5)) < 0.5, tokens.argmax(axis=-1), rng(2).integers(0, 12, (60, 5)))
    whole = both_ways("top-1", {"y": tokens}, labels)
    assert whole == pytest.approx(100 * accuracy_score(labels.ravel(), tokens.argmax(axis=-1).ravel()))
    padded = np.where(np.arange(5) < 3, labels, -100)
    expected = accuracy_score(labels[:, :3].ravel(), tokens.argmax(axis=-1)[:, :3].ravel())
    assert both_ways("top-1", {"y": tokens}, padded) == pytest.approx(100 * expected)
    maps = np.moveaxis(tokens.reshape(60, 5, 1, 12), -1, 1)
    assert both_ways("top-1", {"y": maps}, labels[..., None]) == pytest.approx(whole)


def test_mean_iou() -> None:
    maps = rng().standard_normal((60, 4, 6, 5))
    maps[:, 3] -= 10  # a class that nobody sees
    labels = np.where(rng(1).random((60, 6, 5)) < 0.6, maps.argmax(axis=1), rng(2).integers(0, 3, (60, 6, 5)))
    wanted = 100 * jaccard_score(labels.ravel(), maps.argmax(axis=1).ravel(), average="macro")
    assert both_ways("miou", {"y": maps}, labels) == pytest.approx(wanted)
    ignored = labels.copy()
    ignored[:, 0] = 255
    wanted = 100 * jaccard_score(labels[:, 1:].ravel(), maps.argmax(axis=1)[:, 1:].ravel(), average="macro")
    assert both_ways("miou", {"y": maps}, ignored) == pytest.approx(wanted)
    moved = maps + rng(3).standard_normal(maps.shape)
    wanted = 100 * jaccard_score(maps.argmax(axis=1).ravel(), moved.argmax(axis=1).ravel(), average="macro")
    assert both_ways("miou", {"y": moved}, {"y": maps}, said=("y:maps",)) == pytest.approx(wanted)


def test_agreement_is_of_classes_tokens_elements_and_values() -> None:
    powers = np.exp(LOGITS)
    sure, other = powers / powers.sum(axis=1, keepdims=True), LOGITS + rng(3).standard_normal(LOGITS.shape)
    same = 100 * (LOGITS.argmax(axis=1) == other.argmax(axis=1)).mean()
    assert both_ways("agreement", {"y": other}, {"y": sure}) == pytest.approx(same)
    assert both_ways("agreement", {"y": other}, {"y": LOGITS}, said=("y:scores",)) == pytest.approx(same)
    tokens = {"y": other.reshape(12, 5, 10)}
    assert both_ways("agreement", tokens, {"y": LOGITS.reshape(12, 5, 10)}, said=("y:tokens",)) == pytest.approx(same)
    whole = rng().integers(0, 3, (60, 4))
    moved = np.where(rng(1).random((60, 4)) < 0.2, whole + 1, whole)
    assert both_ways("agreement", {"y": moved}, {"y": whole}) == pytest.approx(100 * (whole == moved).mean())
    noise = 0.3 * rng(5).standard_normal((60, 10))
    wanted = 100 * (1 - (np.square(noise).mean(axis=0) / LOGITS.astype(float).var(axis=0)).mean())
    assert both_ways("agreement", {"y": LOGITS + noise}, {"y": LOGITS}) == pytest.approx(wanted, rel=1e-4)
    # The worst of several outputs counts.
    assert measure("agreement", {"a": whole, "b": whole + 1}, {"a": whole, "b": whole}) == 0


def test_boxes_do_not_drown_scores() -> None:
    boxes, scores = 640 * rng().random((60, 4, 50)), rng(1).random((60, 6, 50))
    before = {"y": np.concatenate([boxes, scores], axis=1)}
    after = {"y": np.concatenate([boxes, rng(2).random((60, 6, 50))], axis=1)}
    assert both_ways("agreement", after, before) == 0
    assert both_ways("relative-error", after, before) == pytest.approx(100 * np.sqrt(2), rel=0.02)
    assert both_ways("cosine", after, before) > 0.99  # of the whole: that is what a cosine is


def test_cosine_noise_and_relative_error() -> None:
    after = LOGITS + 0.1 * rng(3).standard_normal(LOGITS.shape).astype(np.float32)
    wanted = np.mean([1 - distance.cosine(a, b) for a, b in zip(LOGITS, after, strict=True)])
    assert both_ways("cosine", {"y": after}, {"y": LOGITS}) == pytest.approx(wanted, abs=1e-6)
    error = np.linalg.norm(after - LOGITS) / np.linalg.norm(LOGITS)
    assert both_ways("relative-error", {"y": after}, {"y": LOGITS}) == pytest.approx(100 * error, rel=1e-5)
    assert both_ways("snr", {"y": after}, {"y": LOGITS}) == pytest.approx(-20 * np.log10(error), rel=1e-5)
    assert measure("snr", {"y": LOGITS}, {"y": LOGITS}) == np.inf
    assert measure("cosine", {"y": 0 * LOGITS}, {"y": 0 * LOGITS}) == 1
    ruined = np.where(np.arange(60)[:, None] == 3, np.nan, after)
    assert measure("relative-error", {"y": ruined}, {"y": LOGITS}) == np.inf
    assert measure("snr", {"y": ruined}, {"y": LOGITS}) == -np.inf
    with pytest.raises(ModelError, match="no output of floats, which cosine wants"):
        measure("cosine", {"y": LABELS}, {"y": LABELS})


def test_labels_that_do_not_fit() -> None:
    for wrong in (10, -1):
        labels = LABELS.copy()
        labels[5] = wrong
        with pytest.raises(DataError, match=f"has label {wrong}, but the model has 10 classes"):
            measure("top-1", {"y": LOGITS}, labels)
    with pytest.raises(DataError, match="no output with one score a class for each label"):
        measure("top-1", {"y": LOGITS}, np.tile(LABELS[:, None], 3))


def spread(outputs: Arrays, labels: np.ndarray) -> float:
    return float(np.abs(outputs["y"][np.arange(len(labels)), labels]).mean())


@metric(unit="mm", higher_is_better=False)
class Streamed:
    def __init__(self) -> None:
        self.total = self.count = 0.0

    def update(self, outputs: Arrays, labels: np.ndarray) -> None:
        self.total += float(np.abs(outputs["y"][np.arange(len(labels)), labels]).sum())
        self.count += len(labels)

    def result(self) -> np.floating:
        return np.float32(self.total / self.count)


def test_own_metrics_are_functions_and_objects() -> None:
    wanted = spread({"y": LOGITS}, LABELS)
    for own in (spread, Streamed, Streamed(), f"{__name__}:spread", f"{__name__}:Streamed"):
        assert both_ways(own, {"y": LOGITS}, LABELS) == pytest.approx(wanted, rel=1e-6)
    found = as_metric(f"{__name__}:Streamed", BUILT_IN)
    assert (found.name, found.unit, found.higher_is_better, found.reference) == ("Streamed", "mm", False, "labels")

    def gap(outputs: Arrays, original: Arrays) -> float:
        return float(np.abs(outputs["y"] - original["y"]).mean())

    assert as_metric(gap, BUILT_IN).reference == "original"
    assert both_ways(gap, {"y": LOGITS + 1}, {"y": LOGITS}) == pytest.approx(1)
    assert as_metric(metric(reference="labels", name="my gap")(gap), BUILT_IN).name == "my gap"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (lambda outputs, labels: "high", "returned str, not a number"),
        (lambda outputs, labels: None, "returned None, not a number"),
        (lambda outputs, labels: outputs["y"], "returned ndarray, not a number"),
        (lambda outputs, labels: outputs["z"], "failed: KeyError: 'z'"),
        (lambda outputs: 1, "failed: TypeError"),
        (7, "neither callable nor has it update"),
        ("accuracy", "--metric is top-1, top-5, miou, agreement, .* or pkg.module:function, not 'accuracy'"),
        (metric(reference="teacher")(lambda outputs, labels: 1), "reference is 'labels' or 'original'"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_metric_is_one_sentence(own: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure(own, {"y": LOGITS}, LABELS)


@pytest.mark.parametrize("name", ["no_such_module:f", f"{__name__}:no_such_function"])
def test_a_function_that_is_not_there(name: str) -> None:
    with pytest.raises(DataError, match=f"the metric '{name}' cannot be imported"):
        measure(name, {"y": LOGITS}, LABELS)


def test_outputs_of_other_sizes_come_as_lists() -> None:
    seen: list[object] = []

    def own(outputs: Mapping[str, object], labels: np.ndarray) -> float:
        seen.extend((outputs["y"], labels))
        return 1.0

    running = as_metric(own, BUILT_IN).start(Setting({}, 5))
    for count, length in ((2, 7), (3, 9)):
        running.update({"y": np.zeros((count, length))}, np.arange(count), count)
    assert running.result() == 1
    assert [part.shape for part in seen[0]] == [(2, 7), (3, 9)] and len(seen[1]) == 5  # type: ignore[attr-defined, arg-type]


def test_all_outputs_at_once_must_fit_into_memory() -> None:
    running = as_metric(spread, BUILT_IN).start(Setting({}, 10**9))
    with pytest.raises(ModelError, match=r"the metric 'spread', a function of all outputs at once .* takes"):
        running.update({"y": LOGITS}, LABELS, 60)


def test_losses_have_one_sign_whatever_the_direction() -> None:
    top, error = BUILT_IN["top-1"], BUILT_IN["relative-error"]
    assert top.lost(91.7, 90.7) == 1 and top.lost(90, 91) == -1
    assert error.lost(0, 2.5) == 2.5 and error.lost(3, 2) == -1
    assert BUILT_IN["snr"].lost(np.inf, 30) == np.inf and BUILT_IN["snr"].lost(np.inf, np.inf) == 0
    assert top.lost(90, np.nan) == np.inf
    assert top.counted == "points of top-1" and BUILT_IN["snr"].counted == "dB of snr"


def test_the_difference_of_two_files_is_paired() -> None:
    before, after = rng(0).random(400) < 0.9, rng(0).random(400) < 0.88  # the second is wrong where the first is
    scores = Scores(*(Score(BUILT_IN["top-1"], 100 * x.mean(), 400, each=100.0 * x) for x in (before, after)))
    assert scores.lost == pytest.approx(100 * (before.mean() - after.mean()))
    assert scores.before.standard_error == pytest.approx(100 * np.sqrt(before.var(ddof=1) / 400))
    assert scores.standard_error is not None and scores.before.standard_error is not None
    assert scores.standard_error < scores.before.standard_error / 2
    document = scores.to_dict()
    assert document["lost"] == scores.lost and document["metric"] == "top-1" and "allowed" not in document
    assert Scores(Score(BUILT_IN["snr"], np.inf, 4), Score(BUILT_IN["snr"], 20.0, 4)).to_dict()["before"] is None


def test_a_unit_is_shown_as_escapes() -> None:
    """It is a user's text, as names are."""
    own = as_metric(metric(unit="\x1b[31m")(lambda outputs, labels: 1.0), BUILT_IN)
    assert r"\x1b[31m" in own.counted and r"\x1b[31m" in own.text(1.0)
    assert (own.counted + own.text(1.0)).isprintable()
