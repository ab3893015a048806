"""What an output is, and how far it moved."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import trp_onnx
from tests.graphs import info, model, rng, save, weights
from trp_onnx.divergence import agreement, channel_errors, divergence
from trp_onnx.errors import ModelError
from trp_onnx.outputs import OutputKind, output_kinds

LOGITS = rng().standard_normal((40, 10)).astype(np.float32)


def softmax(z: np.ndarray, axis: int = -1) -> np.ndarray:
    powers = np.exp(z)
    return powers / powers.sum(axis=axis, keepdims=True)


def kind_of(array: np.ndarray, classes: int = 0) -> OutputKind:
    return output_kinds(None, {"y": array}, classes)["y"].kind


@pytest.mark.parametrize(
    ("array", "kind", "axis"),
    [
        (softmax(LOGITS), OutputKind.PROBABILITIES, 1),
        (softmax(LOGITS)[:, :, None, None], OutputKind.PROBABILITIES, 1),
        (softmax(LOGITS).astype(np.float16), OutputKind.PROBABILITIES, 1),
        (np.log(softmax(LOGITS)), OutputKind.SCORES, 1),
        (softmax(rng().standard_normal((8, 5, 97))), OutputKind.PROBABILITIES, 2),  # tokens
        (softmax(rng().standard_normal((8, 4, 6, 6)), axis=1), OutputKind.PROBABILITIES, 1),  # a segmentation
        (LOGITS, OutputKind.VALUES, 1),  # landmarks, a regression: nothing says that these are classes
        (LOGITS.reshape(40, 5, 2), OutputKind.VALUES, 2),
        (rng().standard_normal((8, 5, 97)), OutputKind.VALUES, 2),
        (1 / (1 + np.exp(-LOGITS)), OutputKind.VALUES, 1),  # many labels at once
        (LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True), OutputKind.UNIT_VECTORS, 1),
        (LOGITS.argmax(axis=1), OutputKind.DISCRETE, -1),
        (LOGITS > 0, OutputKind.DISCRETE, -1),
        (rng().standard_normal((8, 3, 6, 6)), OutputKind.VALUES, 1),
        (LOGITS[:, 0], OutputKind.VALUES, -1),
    ],
)
def test_values_say_what_they_are(array: np.ndarray, kind: OutputKind, axis: int) -> None:
    found = output_kinds(None, {"y": array})["y"]
    assert (found.kind, found.axis) == (kind, axis)


def test_labels_make_scores_where_they_fit() -> None:
    assert kind_of(LOGITS, classes=10) is kind_of(LOGITS, classes=7) is OutputKind.SCORES
    assert kind_of(LOGITS, classes=11) is OutputKind.VALUES
    assert kind_of(LOGITS.reshape(40, 5, 2), classes=3) is OutputKind.VALUES
    assert kind_of(LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True), classes=3) is OutputKind.UNIT_VECTORS
    both = output_kinds(None, {"features": rng(1).standard_normal((40, 64)), "logits": LOGITS}, 10)
    assert [output.kind for output in both.values()] == [OutputKind.VALUES, OutputKind.SCORES]


def test_boxes_in_pixels_do_not_drown_scores() -> None:
    boxes, scores = 640 * rng().random((4, 4, 300)), rng(1).random((4, 6, 300))
    moved = rng(2).random((4, 6, 300))
    for axis in (1, 2):
        before = np.concatenate([boxes, scores], axis=1)
        after = np.concatenate([boxes, moved], axis=1)
        before, after = (np.ascontiguousarray(np.moveaxis(z, 1, axis)) for z in (before, after))
        errors = channel_errors(before, after)
        assert errors.shape == (10,) and errors[:4].max() == 0
        assert errors[4:] == pytest.approx(np.full(6, 2.0), rel=0.1)  # of two draws: twice the variance
        assert divergence({"y": before}, {"y": after}) == pytest.approx(1.2, rel=0.1)
        assert agreement({"y": before}, {"y": after}) == 0


def test_a_constant_channel_counts_by_its_own_square() -> None:
    before = np.concatenate([LOGITS, np.full((40, 1), 100.0, np.float32), np.zeros((40, 1), np.float32)], axis=1)
    after = before.copy()
    after[:, 10] = 90
    assert channel_errors(before, after)[10] == pytest.approx(0.01, rel=1e-3)
    after[:, 11] = 1
    assert np.isfinite(channel_errors(before, after)).all() and channel_errors(before, after)[11] > 0.001


def test_outputs_agree() -> None:
    turned = np.roll(LOGITS, 1, axis=1)
    turned[:30] = 2 * LOGITS[:30]
    kinds = output_kinds(None, {"y": LOGITS}, 10)
    assert agreement({"y": LOGITS}, {"y": turned}, kinds) == 0.75
    assert agreement({"y": np.arange(40)}, {"y": np.arange(40) % 30}) == 0.75
    unit = LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True)
    cosine = 0.75 + 0.25 * np.einsum("ij,ij->", unit[30:], np.roll(unit, 1, axis=1)[30:]) / 10
    half = np.where(np.arange(40)[:, None] < 30, 3 * unit, np.roll(unit, 1, axis=1))  # length is not looked at
    assert agreement({"y": unit}, {"y": half}) == pytest.approx(cosine, abs=1e-5)
    noise = 0.1 * rng(5).standard_normal((4000, 10))
    large = rng(6).standard_normal((4000, 10))
    assert agreement({"y": large}, {"y": large + noise}) == pytest.approx(0.99, abs=1e-3)
    # Of several outputs the worst.
    assert agreement({"a": np.arange(40), "b": LOGITS}, {"a": np.arange(40), "b": 0 * LOGITS}) < 0.1
    with pytest.raises(ModelError, match="no output"):
        agreement({}, {})


def test_probabilities_are_not_softened_again() -> None:
    p, q = softmax(LOGITS), softmax(0.5 * LOGITS)
    expected = float((p * np.log(p / q)).sum(axis=1).mean())
    assert divergence({"y": p}, {"y": q}) == pytest.approx(expected, rel=1e-4)
    tokens = p.reshape(8, 5, 10)
    assert divergence({"y": tokens}, {"y": q.reshape(8, 5, 10)}) == pytest.approx(expected, rel=1e-4)


# --- networks that decide at their end --------------------------------------------------------------------------------


def decides(path: Path, last: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], **held: np.ndarray) -> Path:
    """Two quiet convolutions of many weights, a loud one that all hangs on, and what is decided from them."""
    stored = {
        "w1": weights(24, 3, 3, 3, seed=1), "w2": weights(24, 24, 3, 3, seed=2), "w3": weights(8, 24, 1, 1, seed=3),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["ar"]),
        helper.make_node("Conv", ["ar", "w2"], ["b"], name="c2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["br"]),
        helper.make_node("Conv", ["br", "w3"], ["z"], name="c3"),
        *last,
    ]
    return save(model(nodes, [info("x", ["N", 3, 8, 8])], outputs, stored | held), path)


WHOLE, BYTES, TRUTH = TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL
ENDS = {
    "argmax": (
        [helper.make_node("ArgMax", ["z"], ["y"], axis=1, keepdims=0)],
        [info("y", ["N", 8, 8], WHOLE)],
        {},
    ),
    "argmax_of_softmax": (
        [helper.make_node("Softmax", ["z"], ["s"], axis=1), helper.make_node("ArgMax", ["s"], ["y"], axis=1)],
        [info("y", ["N", 1, 8, 8], WHOLE)],
        {},
    ),
    "topk": (
        [helper.make_node("TopK", ["z", "k"], ["best", "y"], axis=1)],
        [info("best", ["N", 2, 8, 8]), info("y", ["N", 2, 8, 8], WHOLE)],
        {"k": np.array([2])},
    ),
    "greater": (
        [helper.make_node("Greater", ["z", "t"], ["y"])],
        [info("y", ["N", 8, 8, 8], TRUTH)],
        {"t": np.float32(0.1)},
    ),
    "pixels": (
        [
            helper.make_node("Mul", ["z", "t"], ["scaled"]),
            helper.make_node("Clip", ["scaled", "least", "most"], ["clipped"]),
            helper.make_node("Cast", ["clipped"], ["y"], to=BYTES),
        ],
        [info("y", ["N", 8, 8, 8], BYTES)],
        {"t": np.float32(90), "least": np.float32(0), "most": np.float32(255)},
    ),
    "nonzero": (
        [helper.make_node("Greater", ["z", "t"], ["m"]), helper.make_node("NonZero", ["m"], ["y"])],
        [info("y", [4, "M"], WHOLE)],
        {"t": np.float32(0.1)},
    ),
}


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((64, 3, 8, 8)).astype(np.float32))
    return tmp_path / "x.npz"


@pytest.fixture(params=ENDS)
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    last, outputs, held = ENDS[request.param]
    return decides(tmp_path / f"{request.param}.onnx", last, outputs, **held)


def test_networks_that_decide_are_planned_by_what_they_decide_from(net: Path, samples: Path, tmp_path: Path) -> None:
    report = trp_onnx.compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=samples)
    assert 0.5 < report.macs.ratio <= 0.6
    damages = [layer.reason for layer in report.layers if layer.scheme]
    assert damages and all("damage" in reason and "damage of 0 " not in reason for reason in damages)
