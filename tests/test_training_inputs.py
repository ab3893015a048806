"""Training networks with several inputs: ids, masks, states; samples of different lengths; labels of tokens."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.easy import compress
from tests.graphs import info, model, network_of, rng, run, save, weights
from trp_onnx import Report, TrainingOptions
from trp_onnx.errors import DataError, ModelError, UsageError
from trp_onnx.training.metrics import read_curve

pytestmark = pytest.mark.usefixtures("training_runtime")
WORDS, WIDTH, TAGS = 50, 16, 5
INT64 = TensorProto.INT64
node = helper.make_node


def encoder(path: Path, *, tags: bool = False, names: tuple[str, str] = ("input_ids", "attention_mask")) -> Path:
    """A layer of a text encoder on token ids and their mask: (batch, seq, width), or one score a tag for each token."""
    ids, mask = names
    arrays = {"table": weights(WORDS, WIDTH) * 4, "scale": np.float32(WIDTH**-0.5), "one": np.float32(1),
              "far": np.float32(-1e4), "middle": np.array([1]), "half": np.float32(0.5), "root": np.float32(0.5**0.5),
              "w1": weights(WIDTH, 4 * WIDTH, seed=5), "w2": weights(4 * WIDTH, WIDTH, seed=6),
              "head": 3 * weights(WIDTH, TAGS, seed=7)}  # fmt: skip
    arrays |= {f"w{part}": weights(WIDTH, WIDTH, seed=i) for i, part in enumerate("qkvo")}
    for name in ("a", "b"):
        arrays |= {f"{name}.scale": np.ones(WIDTH, np.float32), f"{name}.shift": np.zeros(WIDTH, np.float32)}
    nodes = [
        node("Gather", ["table", ids], ["e"]),
        *(node("MatMul", ["e", f"w{part}"], [part], name=f"attention/{part}") for part in "qkv"),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"]),
        node("Mul", ["s", "scale"], ["ss"]),
        node("Cast", [mask], ["m"], to=TensorProto.FLOAT),
        node("Sub", ["one", "m"], ["gone"]),
        node("Mul", ["gone", "far"], ["bias"]),
        node("Unsqueeze", ["bias", "middle"], ["bias3"]),
        node("Add", ["ss", "bias3"], ["sb"]),
        node("Softmax", ["sb"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["c"]),
        node("MatMul", ["c", "wo"], ["o"], name="attention/o"),
        node("Add", ["e", "o"], ["r"]),
        node("LayerNormalization", ["r", "a.scale", "a.shift"], ["n"]),
        node("MatMul", ["n", "w1"], ["up"], name="mlp/up"),
        node("Mul", ["up", "root"], ["u"]),
        node("Erf", ["u"], ["erf"]),
        node("Add", ["erf", "one"], ["erf1"]),
        node("Mul", ["up", "erf1"], ["g2"]),
        node("Mul", ["g2", "half"], ["g"]),
        node("MatMul", ["g", "w2"], ["down"], name="mlp/down"),
        node("Add", ["n", "down"], ["r2"]),
        node("LayerNormalization", ["r2", "b.scale", "b.shift"], ["hidden"]),
    ]
    output = info("hidden", ["batch", "seq", WIDTH])
    if tags:
        nodes.append(node("MatMul", ["hidden", "head"], ["tags"], name="head"))
        output = info("tags", ["batch", "seq", TAGS])
    inputs = [info(name, ["batch", "seq"], INT64) for name in names]
    return save(model(nodes, inputs, [output], arrays), path)


def sentences(count: int = 240, seq: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Ids, and masks of sentences of 2 to `seq` tokens."""
    mask = (np.arange(seq) < rng(seed).integers(2, seq + 1, (count, 1))).astype(np.int64)
    return {"input_ids": rng(seed + 1).integers(1, WORDS, (count, seq)) * mask, "attention_mask": mask}


def options(**changes: object) -> TrainingOptions:
    quick: dict[str, object] = {
        "epochs": 4, "batch": 24, "micro_batch": 24, "warmup": 2, "every": 4, "rate": 0.1, "clip": 1.0
    }  # fmt: skip
    return TrainingOptions(**quick | changes)  # type: ignore[arg-type]


def train(net: Path, out: Path, data: object, **more: object) -> Report:
    arguments: dict[str, object] = {"macs": 0.7, "align": 1, "train": options()} | more
    return compress(net, out, data=data, **arguments)


def moved(net: Path, other: Path, samples: dict[str, np.ndarray]) -> float:
    """How far outputs move, where the mask counts."""
    expected, found = (run(path, samples)[0][samples["attention_mask"] > 0] for path in (net, other))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_a_text_encoder_is_trained_without_labels(tmp_path: Path) -> None:
    net, folder = encoder(tmp_path / "net.onnx"), tmp_path / "r"
    np.savez(tmp_path / "text.npz", **sentences())
    compress(net, tmp_path / "direct.onnx", macs=0.7, align=1, input_shapes={"input_ids": [1, 8]})
    report = train(net, tmp_path / "out.onnx", tmp_path / "text.npz", run=folder)
    losses = [point["loss"] for point in read_curve(folder)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]
    assert report.macs.ratio <= 0.7 and report.trained is not None and report.trained.correct is None
    fresh = sentences(60, seed=5)
    assert moved(net, tmp_path / "out.onnx", fresh) < 0.85 * moved(net, tmp_path / "direct.onnx", fresh)
    given = onnx.load(net).graph.input
    assert [value.name for value in onnx.load(tmp_path / "out.onnx").graph.input] == [value.name for value in given]


def tagged(net: Path, samples: dict[str, np.ndarray]) -> np.ndarray:
    """The network's own answers, -1 where the mask is 0."""
    return np.where(samples["attention_mask"] > 0, run(net, samples)[0].argmax(-1), -1)


def test_each_token_has_a_label(tmp_path: Path) -> None:
    """Tokens without a label count for nothing; labels that no class has are refused."""
    net, samples = encoder(tmp_path / "net.onnx", tags=True), sentences()
    y = tagged(net, samples)
    report = train(net, tmp_path / "out.onnx", samples | {"y": y}, train=options(distill=0.0), run=tmp_path / "r")
    curve = read_curve(tmp_path / "r")
    assert curve[-1]["loss"] < curve[0]["loss"] and curve[-1]["accuracy"] > 0.8
    assert report.trained is not None and report.trained.written_correct == report.trained.correct
    assert report.trained.samples < 24 * 8  # tokens with a label, of the 24 held-out sentences
    with pytest.raises(DataError, match="has label 9, but the model has 5 classes"):
        train(net, tmp_path / "no.onnx", samples | {"y": np.where(y == 2, 9, y)})
    with pytest.raises(DataError, match="no output with one score a class for each label"):
        train(net, tmp_path / "no.onnx", samples | {"y": y[:, :4]})


def test_sentences_of_different_lengths(tmp_path: Path) -> None:
    """A folder of files, each with a label for each of its tokens; equal lengths are run together."""
    net, samples = encoder(tmp_path / "net.onnx", tags=True), sentences(120)
    y, folder = tagged(net, samples), tmp_path / "text"
    folder.mkdir()
    for i, length in enumerate(samples["attention_mask"].sum(axis=1)):
        sample = {name: array[i : i + 1, :length] for name, array in samples.items()}
        np.savez(folder / f"{i:04}.npz", **sample, y=y[i : i + 1, :length])
    report = train(net, tmp_path / "out.onnx", folder, train=options(epochs=2, micro_batch=12), run=tmp_path / "r")
    curve = read_curve(tmp_path / "r")
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert report.trained is not None and report.trained.written_correct == report.trained.correct


def made_sentences(split: str, epoch: int) -> Iterator[dict[str, np.ndarray]]:
    for i in range(4 if split == "train" else 1):
        yield sentences(24, seq=6 + i, seed=10 * epoch + i)


def test_a_function_yields_mappings(tmp_path: Path) -> None:
    net = encoder(tmp_path / "net.onnx")
    report = train(net, tmp_path / "out.onnx", "tests.test_training_inputs:made_sentences", train=options(epochs=2))
    assert report.trained is not None and report.trained.samples == 24


def test_samples_are_given_one_by_one(tmp_path: Path) -> None:
    net, samples = encoder(tmp_path / "net.onnx"), sentences(80)
    each = [{name: array[i : i + 1] for name, array in samples.items()} for i in range(80)]
    for name, data in (("all", samples), ("each", iter(each))):
        report = train(net, tmp_path / f"{name}.onnx", data, train=options(epochs=1, warmup=3))
        assert any("the training has 3 steps, within the warm-up of 3" in note for note in report.notes)
    assert network_of(tmp_path / "all.onnx") == network_of(tmp_path / "each.onnx")
    with pytest.raises(DataError, match="differ in size: give the path"):
        train(net, tmp_path / "no.onnx", iter([*each, {name: array[:, :4] for name, array in each[0].items()}]))


def recurrent(path: Path) -> Path:
    """A step of a speech detector: sound, a state with the batch second, the sampling rate."""
    arrays = {"w": weights(24, 16), "u": weights(16, 16, seed=1), "out": weights(16, 8, seed=2),
              "first": np.array(0), "front": np.array([0]), "known": np.array(16000), "one": np.float32(1),
              "slow": np.float32(0.5)}  # fmt: skip
    nodes = [
        node("Gather", ["state", "first"], ["s"], axis=0),
        node("MatMul", ["input", "w"], ["a"], name="sound"),
        node("MatMul", ["s", "u"], ["b"], name="memory"),
        node("Add", ["a", "b"], ["c"]),
        node("Equal", ["sr", "known"], ["same"]),
        node("Where", ["same", "one", "slow"], ["factor"]),
        node("Mul", ["c", "factor"], ["scaled"]),
        node("Tanh", ["scaled"], ["h"]),
        node("MatMul", ["h", "out"], ["y"], name="out"),
        node("Unsqueeze", ["h", "front"], ["stateN"]),
    ]
    inputs = [info("input", ["batch", 24]), info("state", [1, "batch", 16]), info("sr", [], INT64)]
    return save(model(nodes, inputs, [info("y", ["batch", 8]), info("stateN", [1, "batch", 16])], arrays), path)


def test_a_state_whose_batch_is_second_beside_a_number(tmp_path: Path) -> None:
    data = {"input": rng().standard_normal((160, 24)).astype(np.float32), "sr": np.array(16000),
            "state": rng(1).standard_normal((1, 160, 16)).astype(np.float32)}  # fmt: skip
    train(recurrent(tmp_path / "net.onnx"), tmp_path / "out.onnx", data, macs=0.6, run=tmp_path / "r")
    losses = [point["loss"] for point in read_curve(tmp_path / "r")]
    assert losses[-1] < losses[0]


def test_inputs_that_cannot_be_trained(tmp_path: Path) -> None:
    net, samples = encoder(tmp_path / "net.onnx"), sentences(80)
    other = encoder(tmp_path / "other.onnx", names=("words", "attention_mask"))
    with pytest.raises(UsageError, match=r"the teacher .* has inputs words, attention_mask, the model input_ids"):
        train(net, tmp_path / "out.onnx", samples, teacher=other)
    with pytest.raises(DataError, match="no array for input 'attention_mask'"):
        train(net, tmp_path / "out.onnx", {"input_ids": samples["input_ids"]})
    built = onnx.load(net)
    built.graph.input.append(info("text", ["batch"], TensorProto.STRING))
    built.graph.node.append(node("Identity", ["text"], ["copy"]))
    built.graph.output.append(info("copy", ["batch"], TensorProto.STRING))
    with pytest.raises(ModelError, match="input 'text' has type STRING: training takes"):
        train(save(built, tmp_path / "text.onnx"), tmp_path / "out.onnx", samples | {"text": np.array(["a"] * 80)})
