"""What an output is, and how far it moved."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import trp_onnx
from tests.easy import compress
from tests.graphs import conv_net, distance, info, model, rng, run, save, tensor, weights
from trp_onnx.cli.main import main
from trp_onnx.errors import DataError, ModelError, UsageError
from trp_onnx.evaluation.divergence import RUINED, agreement, channel_errors, divergence
from trp_onnx.evaluation.outputs import ClassLabels, Output, OutputKind, Told, output_kinds, read_said
from trp_onnx.graph.inputs import Run
from trp_onnx.graph.model import open_model
from trp_onnx.passes.normalise import normalise
from trp_onnx.training.losses import OutputLoss, choose_losses
from trp_onnx.training.options import TrainingOptions
from trp_onnx.training.trainable import make_trainable

LOGITS = rng().standard_normal((40, 10)).astype(np.float32)


def softmax(z: np.ndarray, axis: int = -1) -> np.ndarray:
    powers = np.exp(z)
    return powers / powers.sum(axis=axis, keepdims=True)


TEN = Told(labels=ClassLabels(10))


def kind_of(array: np.ndarray, classes: int = 0) -> OutputKind:
    return output_kinds(None, {"y": array}, Told(labels=ClassLabels(classes) if classes else None))["y"].kind


def masked(path: Path) -> Path:
    """Scores of which some are ruled out by -inf, and a mask of 0 and -inf, as decoders give them."""
    ruled_out = np.where(np.arange(12) % 4 == 3, -np.inf, 0).astype(np.float32)
    held = {"w1": weights(16, 24, seed=1), "w2": weights(24, 12, seed=2), "mask": ruled_out}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["s"]),
        helper.make_node("Add", ["s", "mask"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["answer"], axis=1, keepdims=0),
    ]
    outputs = [info("scores", ["n", 12]), info("answer", ["n"], TensorProto.INT64)]
    return save(model(nodes, [info("x", ["n", 16])], outputs, held), path)


def test_an_infinity_is_an_answer(tmp_path: Path) -> None:
    net = masked(tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=rng(3).standard_normal((64, 16)).astype(np.float32))
    for how in ({}, {"data": tmp_path / "x.npz"}, {"data": tmp_path / "x.npz", "asymmetric": True}):
        report = compress(net, tmp_path / "out.onnx", macs=0.8, align=1, **how)
        (error, _) = report.outputs
        assert 0 < error.relative_error < 1 and (error.worst_error is None or np.isfinite(error.worst_error))
        assert report.score is None or 0 < report.score.after.value <= 100
    quantised = trp_onnx.quantize(net, tmp_path / "int8.onnx", data=tmp_path / "x.npz", max_drop=50)
    assert quantised is not None and (tmp_path / "int8.onnx").exists()


def test_only_the_same_infinity_is_equal() -> None:
    z = rng().standard_normal((40, 10))
    z[:, 3] = -np.inf
    moved = z + 0.1 * rng(1).standard_normal(z.shape)
    for kind in (OutputKind.VALUES, OutputKind.SCORES):
        kinds = {"y": Output(kind, 1)}
        assert divergence({"y": z}, {"y": z}, kinds) == pytest.approx(0, abs=1e-9)
        assert 0 < divergence({"y": z}, {"y": moved}, kinds) < 0.1
        assert 0.5 < agreement({"y": z}, {"y": moved}, kinds) <= 1
        for wrong in (np.inf, np.nan, 0.0):
            ruined = z.copy()
            ruined[0, 3] = wrong
            assert divergence({"y": z}, {"y": ruined}, kinds) == RUINED
    one = np.full((8, 4), -np.inf)
    one[:, 2] = rng().standard_normal(8)  # only one class is left: certain at every temperature
    assert divergence({"y": one}, {"y": one}, {"y": Output(OutputKind.SCORES, 1)}) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ModelError, match="NaN"):
        divergence({"y": np.where(z < -1, np.nan, z)}, {"y": z})


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
    both = output_kinds(None, {"features": rng(1).standard_normal((40, 64)), "logits": LOGITS}, TEN)
    assert [output.kind for output in both.values()] == [OutputKind.VALUES, OutputKind.SCORES]


def test_labels_of_tokens_and_pixels_speak_of_their_scores() -> None:
    tokens, maps = rng().standard_normal((8, 5, 97)), rng().standard_normal((8, 3, 6, 7))
    outputs = {"features": rng().standard_normal((8, 5, 12)), "tokens": tokens, "maps": maps}
    for shape, name, axis in (((8, 5), "tokens", 2), ((8, 6, 7), "maps", 1)):
        labels = rng().integers(0, outputs[name].shape[axis], shape)
        labels.flat[:3] = 96 if name == "tokens" else 2
        found = output_kinds(None, outputs, Told(labels=ClassLabels.of(labels)))
        assert found[name] == Output(OutputKind.SCORES, axis) and found[name].labelled
        assert [output.kind for other, output in found.items() if other != name] == [OutputKind.VALUES] * 2
    unlabelled = np.full((8, 6, 7), 255)
    unlabelled[:, 0] = -100
    unlabelled[0, 1] = 2
    assert ClassLabels.of(unlabelled) == ClassLabels(3, (6, 7))
    assert ClassLabels.of(None) is None and ClassLabels.of(np.array([0.5, 1.5])) is None


def test_a_user_says_what_outputs_are() -> None:
    outputs = {"a:0": rng().standard_normal((8, 5, 97)), "b": rng().standard_normal((8, 3, 6, 6)), "c": LOGITS[:8]}
    said = read_said(["a:0:tokens", "b:maps", "c:scores"])
    found = output_kinds(None, outputs, Told(said))
    assert found == {name: Output(OutputKind.SCORES, axis) for name, axis in (("a:0", 2), ("b", 1), ("c", 1))}
    assert found == output_kinds(None, outputs, Told(read_said({"a:0": "scores:2", "b": "scores:1", "c": "scores:-1"})))
    assert str(found["c"]) == "scores along axis 1 (as you said)"
    for wrong in ("c", "c:logits", ":scores", "c:scores:x"):
        with pytest.raises(UsageError, match=r"NAME:KIND:AXIS, KIND one of scores, "):
            read_said([wrong])
    with pytest.raises(UsageError, match="'c' has 2 axes, so none of number 2"):
        output_kinds(None, outputs, Told(read_said(["c:scores:2"])))
    with pytest.raises(UsageError, match="'c' is of int64, which are no scores"):
        output_kinds(None, {"c": np.arange(8)}, Told(read_said(["c:scores:0"])))


def test_detectors_give_boxes() -> None:
    boxes, scores = 640 * rng().random((4, 4, 300)), rng(1).random((4, 80, 300)) ** 4
    for axis in (1, 2):
        both = np.ascontiguousarray(np.moveaxis(np.concatenate([boxes, scores], axis=1), 1, axis))
        assert output_kinds(None, {"y": both})["y"] == Output(OutputKind.BOXES, axis)


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


def test_squares_beyond_float32() -> None:
    """Nothing is warned of: they are far from unit length, and their spread is infinite."""
    large = np.full((10, 3), 1e25, np.float32) * np.arange(3, dtype=np.float32)
    found = output_kinds(None, {"y": large})["y"]
    assert found.kind is OutputKind.VALUES and divergence({"y": large}, {"y": large}) == 0


def test_outputs_agree() -> None:
    turned = np.roll(LOGITS, 1, axis=1)
    turned[:30] = 2 * LOGITS[:30]
    kinds = output_kinds(None, {"y": LOGITS}, TEN)
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
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=samples)
    assert 0.5 < report.macs.ratio <= 0.6
    damages = [layer.reason for layer in report.layers if layer.scheme]
    damages += [space.reason for space in report.spaces if space.kept < space.units]
    assert damages and all("damage" in reason and "damage of 0 " not in reason for reason in damages)


def test_int8_of_networks_that_decide(net: Path, samples: Path, tmp_path: Path) -> None:
    result = trp_onnx.quantize(net, tmp_path / "q.onnx", samples)
    assert result.layers >= 2 and result.lost <= 1
    before, after = (run(path, {"x": np.load(samples)["x"]})[-1] for path in (net, tmp_path / "q.onnx"))
    if before.shape == after.shape:  # of independent weights: some answers are as good as tied
        assert np.mean(before != after) < 0.2 or net.stem == "pixels"
    assert "differ" in result.measure or net.stem == "pixels"


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Vectors of unit length, and one layer whose channels differ too much for one int8 scale."""
    folder = tmp_path_factory.mktemp("embedding")
    sizes = np.logspace(0, 4, 24).astype(np.float32)
    held = {
        "w1": weights(24, 3, 3, 3, seed=1) * sizes[:, None, None, None],
        "w2": weights(24, 24, 3, 3, seed=2) / sizes[None, :, None, None],
        "shape": np.array([0, -1]),
        "fc": weights(24 * 16, 32, seed=3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="c1"),
        helper.make_node("LeakyRelu", ["a"], ["ar"]),
        helper.make_node("Conv", ["ar", "w2"], ["b"], name="c2"),
        helper.make_node("LeakyRelu", ["b"], ["br"]),
        helper.make_node("Reshape", ["br", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["z"], name="fc"),
        helper.make_node("LpNormalization", ["z"], ["y"], axis=1),
    ]
    net = save(model(nodes, [info("x", ["N", 3, 8, 8])], [info("y", ["N", 32])], held), folder / "net.onnx")
    np.savez(folder / "x.npz", x=rng().standard_normal((64, 3, 8, 8)).astype(np.float32))
    return net, folder / "x.npz"


def test_int8_keeps_the_direction_of_unit_vectors(embedding: tuple[Path, Path], tmp_path: Path) -> None:
    net, data = embedding
    x = {"x": rng(7).standard_normal((64, 3, 8, 8)).astype(np.float32)}
    before = run(net, x)[0]
    for max_drop, layers in ((90.0, 3), (1.0, 1)):
        result = trp_onnx.quantize(net, tmp_path / "q.onnx", data, max_drop=max_drop)
        after = run(tmp_path / "q.onnx", x)[0]
        cosine = np.einsum("ij,ij->i", before, after) / np.maximum(np.linalg.norm(after, axis=1), 1e-9)
        assert 1 - cosine.mean() == pytest.approx(result.lost / 100, rel=0.5, abs=1e-3)
        assert "mean cosine" in result.measure and f"{result.lost:.2f} %" in result.measure
        assert result.layers + len(result.in_float) == 3 and result.layers >= layers
    assert 1 - cosine.mean() < 0.015 and result.in_float
    command = ["quantize", str(net), "-o", str(tmp_path / "q.onnx"), "--data", str(data)]
    shown = CliRunner().invoke(main, [*command, "--json", str(tmp_path / "q.json")])
    assert shown.exit_code == 0 and "mean cosine" in shown.stdout and "points" not in shown.stdout
    assert "mean cosine" in json.loads((tmp_path / "q.json").read_text())["measure"]
    with pytest.raises(DataError, match="no output with one score a class"):
        trp_onnx.evaluate(net, (x["x"], np.arange(64) % 8))


def head(path: Path, outputs: list[onnx.ValueInfoProto], *last: onnx.NodeProto, **held: np.ndarray) -> Path:
    """conv_net with other ends, which read its features `f`, (N, 16)."""
    proto = onnx.load(conv_net(path))
    graph = proto.graph
    del graph.node[-1], graph.output[:]
    graph.node.extend(last)
    graph.output.extend(outputs)
    graph.initializer.extend(tensor(name, array) for name, array in held.items())
    return save(proto, path)


def losses(net: Path, given: np.ndarray | None, **options: float) -> dict[str, OutputLoss]:
    x = rng().standard_normal((4, 3, 12, 12)).astype(np.float32)
    ready = make_trainable(normalise(open_model(net)), Run({"x": x}, len(x)))
    chosen = TrainingOptions(**options)  # type: ignore[arg-type]
    found = choose_losses(ready.model, chosen, given is not None, ready.outputs, Told(labels=ClassLabels.of(given)))
    return {loss.name: loss for loss in found}


def test_what_training_learns_by_default(tmp_path: Path) -> None:
    gemm = helper.make_node("Gemm", ["f", "wf", "bf"], ["z"], name="fc", transB=1)
    softmax_of = helper.make_node("Softmax", ["z"], ["y"], axis=1)
    pairs = helper.make_node("Reshape", ["z", "s"], ["y"])
    net = head(tmp_path / "regression.onnx", [info("z", ["N", 10])], gemm)
    labels = np.arange(10)
    assert not losses(net, None)["z"].logits  # mean square
    assert losses(net, labels)["z"].logits and losses(net, labels)["z"].label_weight > 0
    assert losses(net, labels, labels=0)["z"].logits
    net = head(tmp_path / "classes.onnx", [info("y", ["N", 10])], gemm, softmax_of)
    assert losses(net, None)["y"].logits and losses(net, None)["y"].probabilities
    net = head(tmp_path / "landmarks.onnx", [info("y", ["N", 5, 2])], gemm, pairs, s=np.array([-1, 5, 2]))
    assert not losses(net, None)["y"].logits
    with pytest.raises(DataError, match="no output with one score a class for each label: train with --labels 0"):
        losses(net, labels)
    outputs = [info("f", ["N", 16]), info("y", ["N", 10])]
    both = losses(head(tmp_path / "both.onnx", outputs, gemm, softmax_of), labels)
    assert both["y"].label_weight > 0 and not both["f"].label_weight and not both["f"].logits
    best = helper.make_node("ArgMax", ["z"], ["y"], axis=1, keepdims=0)
    with pytest.raises(ModelError, match="no output of the model is a float"):
        losses(head(tmp_path / "argmax.onnx", [info("y", ["N"], WHOLE)], gemm, best), None)
    both = losses(head(tmp_path / "two.onnx", [info("y", ["N"], WHOLE), info("z", ["N", 10])], gemm, best), None)
    assert both["y"].distill_weight == 0 and both["z"].distill_weight > 0


# --- weights that the quantiser does not see --------------------------------------------------------------------------

CHAINS = {
    "reshape": (helper.make_node("Reshape", ["w0", "s"], ["w"]), (1, 64, 32), {"s": np.array([64, 32])}),
    "transpose": (helper.make_node("Transpose", ["w0"], ["w"], perm=[1, 0]), (32, 64), {}),
    "identity": (helper.make_node("Identity", ["w0"], ["w"]), (64, 32), {}),
    "scaled": (helper.make_node("Mul", ["w0", "s"], ["w"]), (64, 32), {"s": np.float32(0.5)}),
}


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("chain", CHAINS)
def test_weights_behind_other_nodes_are_stored_in_int8(chain: str, op: str, tmp_path: Path) -> None:
    node, shape, held = CHAINS[chain]
    nodes = [node, helper.make_node(op, ["x", "w"], ["y"], name="fc")]
    net = save(model(nodes, [info("x", ["N", 64])], [info("y", ["N", 32])], {"w0": weights(*shape), **held}),
               tmp_path / "net.onnx")  # fmt: skip
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((64, 64)).astype(np.float32))
    result = trp_onnx.quantize(net, tmp_path / "q.onnx", tmp_path / "x.npz", max_drop=20)
    large = [t for t in onnx.load(tmp_path / "q.onnx").graph.initializer if np.prod(t.dims) >= 64 * 32]
    assert result.layers == 1 and not result.in_float
    assert [t.data_type for t in large] == [TensorProto.INT8]


def test_a_weight_that_others_read_is_said_to_be_stored_twice(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Transpose", ["w1"], ["w2"], perm=[1, 0]),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    built = model(nodes, [info("x", ["N", 64])], [info("y", ["N", 64])], {"w1": weights(64, 32)})
    np.savez(tmp_path / "x.npz", x=rng().standard_normal((64, 64)).astype(np.float32))
    result = trp_onnx.quantize(save(built, tmp_path / "net.onnx"), tmp_path / "q.onnx", tmp_path / "x.npz", max_drop=9)
    stored = onnx.load(tmp_path / "q.onnx").graph.initializer
    assert result.layers == 2 and not [t for t in stored if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 64]
    assert any("'second' is stored twice" in note and "'w1'" in note for note in result.notes)


# --- sizes that values decide on, sequences ---------------------------------------------------------------------------


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """Boxes and scores of 64 places, of which suppression leaves some."""
    last = [
        helper.make_node("Conv", ["br", "wb"], ["boxes0"], name="boxes"),
        helper.make_node("Reshape", ["boxes0", "by4"], ["boxes1"]),
        helper.make_node("Transpose", ["boxes1"], ["all"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["z", "by8"], ["scores0"]),
        helper.make_node("Sigmoid", ["scores0"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["all", "scores", "most", "overlap", "least"], ["chosen"]),
        helper.make_node("Slice", ["chosen", "two", "three", "one"], ["places0"]),
        helper.make_node("Squeeze", ["places0", "one"], ["places"]),
        helper.make_node("Gather", ["all", "places"], ["kept"], axis=1),
    ]
    outputs = [info("kept", ["N", "M", 4]), info("chosen", ["M", 3], WHOLE)]
    return decides(
        tmp_path / "detector.onnx", last, outputs,
        wb=weights(4, 24, 1, 1, seed=4), by4=np.array([0, 4, -1]), by8=np.array([0, 8, -1]), one=np.array([1]),
        two=np.array([2]), three=np.array([3]), most=np.array([20]), overlap=np.array([0.5], np.float32),
        least=np.array([0.4], np.float32),
    )  # fmt: skip


def test_sizes_that_values_decide_on(detector: Path, samples: Path, tmp_path: Path) -> None:
    for options in ({}, {"data": samples}):
        report = compress(detector, tmp_path / "out.onnx", macs=0.6, align=1, **options)
        errors = {output.name: output for output in report.outputs}
        assert set(errors) == {"kept", "chosen"} and errors["chosen"].measure == "share that differs"
        for name, error in errors.items():
            assert 0.01 <= error.relative_error < 0.9
            assert any(f"output '{name}'" in note and "as a set" in note for note in report.notes)
    result = trp_onnx.quantize(detector, tmp_path / "q.onnx", samples, max_drop=5)
    assert result.layers >= 3 and "'kept' differ" in result.measure


def test_sets_are_compared_as_sets() -> None:
    kinds = {"y": Output(OutputKind.ITEMS, 0)}
    rows = np.array([[0, 1], [0, 2], [3, 3], [4, 4]])
    assert agreement({"y": rows}, {"y": rows[[2, 0, 1, 3]]}, kinds) == 1
    assert agreement({"y": rows}, {"y": rows[:3]}, kinds) == 0.75
    assert agreement({"y": rows}, {"y": rows[:0]}, kinds) == 0
    assert agreement({"y": rows[:0]}, {"y": rows[:0]}, kinds) == 1
    boxes = 100 * rng().random((20, 4))
    assert agreement({"y": boxes}, {"y": boxes[::-1]}, kinds) == pytest.approx(1)
    assert agreement({"y": boxes}, {"y": boxes[:0]}, kinds) == 0
    assert 0.7 < agreement({"y": boxes}, {"y": boxes[:10]}, kinds) < 1
    assert divergence({"y": [boxes, boxes[:3]]}, {"y": [boxes, boxes[:3]]}) == pytest.approx(0)
    assert divergence({"y": [boxes, boxes[:3]]}, {"y": [boxes[:0], boxes[:0]]}) == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_sequences(axis: int, samples: Path, tmp_path: Path) -> None:
    split = helper.make_node("SplitToSequence", ["z"], ["y"], axis=axis)
    sequence = helper.make_value_info(
        "y", helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    net = decides(tmp_path / "net.onnx", [split], [sequence])
    for options in ({}, {"data": samples}):
        report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, **options)
        (output,) = report.outputs
        x = {"x": np.load(samples)["x"]}
        before, after = (np.concatenate(run(path, x)[0], axis) for path in (net, tmp_path / "out.onnx"))
        assert output.name == "y" and output.relative_error == pytest.approx(distance(before, after), rel=0.3)
    result = trp_onnx.quantize(net, tmp_path / "q.onnx", samples, max_drop=5)
    assert result.layers == 3 and 0 < result.lost <= 5
    if axis == 1:
        assert max(trp_onnx.export(net, tmp_path / "out").manifest["comparison"]["relative_errors"].values()) < 1e-5


TENSOR = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
ODD = {
    "scalar": ([helper.make_node("ReduceMean", ["z"], ["y"], keepdims=0)], info("y", [])),
    "one_a_sample": ([helper.make_node("ReduceMax", ["z"], ["y"], axes=[1, 2, 3], keepdims=0)], info("y", ["N"])),
    "optional": (
        [helper.make_node("Optional", ["z"], ["y"])],
        helper.make_value_info("y", helper.make_optional_type_proto(TENSOR)),
    ),
    "names": (
        [helper.make_node("ArgMax", ["z"], ["best"], axis=1), helper.make_node("Cast", ["best"], ["y"], to=8)],
        info("y", ["N", 1, 8, 8], TensorProto.STRING),
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_outputs(kind: str, samples: Path, tmp_path: Path) -> None:
    last, output = ODD[kind]
    net = decides(tmp_path / "net.onnx", last, [output])
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=samples)
    assert 0.5 < report.macs.ratio <= 0.6 and 0 < report.outputs[0].relative_error < 0.9
    if kind == "scalar":
        assert trp_onnx.quantize(net, tmp_path / "q.onnx", samples, max_drop=5).layers == 3


def test_maps_are_refused_in_a_sentence(tmp_path: Path) -> None:
    """ZipMap, as converters of scikit-learn put it behind the probabilities."""
    last = [helper.make_node("ZipMap", ["z"], ["y"], domain="ai.onnx.ml", classlabels_int64s=list(range(8)))]
    one = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    net = decides(tmp_path / "net.onnx", last, [helper.make_value_info("y", helper.make_sequence_type_proto(one))])
    with pytest.raises(ModelError, match="zipmap=False"):
        compress(net, tmp_path / "out.onnx", macs=0.6)


def test_outputs_that_say_nothing_are_not_planned_by(samples: Path, tmp_path: Path) -> None:
    shape = helper.make_node("Shape", ["z"], ["y"])
    net = decides(tmp_path / "net.onnx", [shape], [info("y", [4], WHOLE)])
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=samples)
    assert 0.5 < report.macs.ratio <= 0.6
    assert any("nothing to plan by but the weights" in note for note in report.notes)


def test_boxes_in_pixels_do_not_drown_scores_in_the_report(samples: Path, tmp_path: Path) -> None:
    """The error of the whole is that of the boxes; the worst channel is a score."""
    last = [
        helper.make_node("Conv", ["br", "wb", "bb"], ["boxes"], name="boxes"),
        helper.make_node("Sigmoid", ["z"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["both"], axis=1),
        helper.make_node("Reshape", ["both", "s"], ["y"]),
    ]
    net = decides(
        tmp_path / "net.onnx", last, [info("y", ["N", 12, 64])], wb=200 * weights(4, 24, 1, 1, seed=4),
        bb=np.full(4, 320, np.float32), s=np.array([0, 12, -1]),
    )  # fmt: skip
    report = compress(net, tmp_path / "out.onnx", macs=0.3, align=1)
    (output,) = report.outputs
    assert output.relative_error < 0.4
    assert output.worst_channel is not None and output.worst_channel >= 4
    assert output.worst_error is not None and output.worst_error > 2 * output.relative_error
    assert output.hidden_error is not None and output.hidden_error > 0.8
    assert any("small channels" in warning for warning in report.warnings)


def test_labels_of_the_test_say_that_outputs_are_scores(tmp_path: Path) -> None:
    """Logits beside no label are taken for numbers, and a note says how to say more."""
    net = conv_net(tmp_path / "net.onnx")
    x = rng(0).standard_normal((48, 12, 12, 3)).astype(np.float32)
    np.savez(tmp_path / "plain.npz", x=x)
    np.savez(tmp_path / "labelled.npz", x=x, y=np.arange(48) % 10)

    def asks(**options: object) -> bool:
        report = compress(net, None, macs=0.7, align=1, data=tmp_path / "plain.npz", **options)
        return any("--output-kind logits:scores" in note for note in report.notes)

    assert asks()
    assert not asks(test=tmp_path / "labelled.npz")
    assert not asks(output_kinds={"logits": "scores"})
