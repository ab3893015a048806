"""What a model is fed: batches, sizes, generated and given inputs, arrays as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import trp_onnx
from tests import graphs
from tests.clockwork import runs_on
from tests.easy import compress
from tests.graphs import info, model, rng, save, weights
from trp_onnx.cli.main import main
from trp_onnx.graph.batching import find_batching, run_samples
from trp_onnx.graph.generating import generate
from trp_onnx.graph.inputs import Run, inputs_of
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import open_session
from trp_onnx.graph.sizes import input_dims, sizes_from


def cli(*arguments: object) -> tuple[int, str]:
    """Exit code and what went to stderr, in one line."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.stderr.split())


def batch_in_reshape(
    path: Path, rows: int = 1, declared: str | int = "N", answers: str | int = "N", channels: int = 3
) -> Path:  # fmt: skip
    """A batch that is dynamic by name, and a Reshape that holds it fast."""
    arrays = {
        "w": weights(24, channels, 3, 3), "v": weights(24, 24, 3, 3, seed=1), "fc": weights(1536, 10, seed=2) / 10,
        "shape": np.array([rows, 1536]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["b"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["b", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["y"], name="fc"),
    ]
    return save(model(nodes, [info("x", [declared, channels, 8, 8])], [info("y", [answers, 10])], arrays), path)


def fed_to(net: Path, data: trp_onnx.Dataset) -> dict[str, np.ndarray]:
    """All samples as a model takes them, of equal sizes."""
    (run,) = data.bound(inputs_of(open_model(net))).take(np.arange(len(data)))
    return run.feeds


def labelled(path: Path, net: Path, count: int, *shape: int) -> Path:
    """Samples with the net's own answers for labels, one at a time."""
    x = rng(3).standard_normal((count, *shape)).astype(np.float32)
    session = open_session(net)
    size = session.get_inputs()[0].shape[0]
    size = size if isinstance(size, int) else 1
    y = np.concatenate([session.run(None, {"x": x[i : i + size]})[0] for i in range(0, count, size)]).argmax(axis=1)
    np.savez(path, x=x, y=y)
    return path


@pytest.mark.parametrize(("rows", "size", "fixed"), [(1, 1, False), (4, 4, True), (-1, 32, False)])
def test_how_many_samples_go_in_at_once(tmp_path: Path, rows: int, size: int, fixed: bool) -> None:
    net = batch_in_reshape(tmp_path / "net.onnx", rows, answers=rows if rows > 1 else "N")
    x = rng().standard_normal((10, 3, 8, 8)).astype(np.float32)
    session = open_session(net)
    found = find_batching(session, Run({"x": x}, 10), inputs_of(open_model(net)))
    assert (found.size, found.fixed) == (size, fixed)
    y = run_samples(session, [Run({"x": x}, 10)], found)["y"]
    free = open_session(batch_in_reshape(tmp_path / "free.onnx", -1))
    assert np.allclose(y, free.run(None, {"x": x})[0], atol=1e-5)


def test_samples_that_would_mix_go_in_one_at_a_time(tmp_path: Path) -> None:
    """The batch runs, and the answer of one sample depends on the others."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    net = save(model(nodes, [info("x", ["N", 6])], [info("y", ["N", 6])]), tmp_path / "net.onnx")
    x = rng().standard_normal((5, 6)).astype(np.float32)
    session = open_session(net)
    found = find_batching(session, Run({"x": x}, 5), inputs_of(open_model(net)))
    assert found.size == 1
    assert np.allclose(run_samples(session, [Run({"x": x}, 5)], found)["y"], x)


def test_a_batch_that_does_not_run_is_evaluated_and_quantised(tmp_path: Path) -> None:
    net = batch_in_reshape(tmp_path / "net.onnx")
    data = labelled(tmp_path / "d.npz", net, 40, 3, 8, 8)
    assert trp_onnx.evaluate(net, data).value == 100
    made = trp_onnx.quantize(net, tmp_path / "int8.onnx", data, test=data, max_drop=50)
    assert made.layers > 0 and made.variants[0].score is not None and made.variants[0].score.value == 100


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    net = batch_in_reshape(tmp_path / "net.onnx", -1, declared=4, answers=4)
    data = labelled(tmp_path / "d.npz", net, 40, 3, 8, 8)
    with np.load(data) as arrays:
        np.savez(tmp_path / "odd.npz", x=arrays["x"][:38], y=arrays["y"][:38])
    assert trp_onnx.evaluate(net, tmp_path / "odd.npz").value == 100


def declared(path: Path, *sizes: int) -> Path:
    """The small convolutional net with other sizes of its input and output."""
    net = onnx.load(graphs.conv_net(path))
    for dim, size in zip(net.graph.input[0].type.tensor_type.shape.dim, sizes, strict=True):
        dim.dim_value = size
    net.graph.output[0].type.tensor_type.shape.dim[0].dim_value = sizes[0]
    return save(net, path)


def test_a_fixed_batch_beyond_memory(tmp_path: Path) -> None:
    net = declared(tmp_path / "net.onnx", 2**40, 3, 12, 12)
    np.savez(tmp_path / "d.npz", x=np.zeros((10, 3, 12, 12), np.float32), y=np.zeros(10, np.int64))
    with pytest.raises(trp_onnx.DataError, match=r"a batch of 1099511627776 samples.* of memory"):
        trp_onnx.evaluate(net, tmp_path / "d.npz")


def test_sizes_of_minus_one_are_free(tmp_path: Path) -> None:
    net = declared(tmp_path / "net.onnx", -1, 3, -1, -1)
    report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, input_shapes={"x": (1, 3, 12, 12)})
    fixed = graphs.conv_net(tmp_path / "fixed.onnx")
    assert report.macs.before == compress(fixed, tmp_path / "o.onnx", macs=0.6, align=1).macs.before
    for command in (("inspect",), ("bench", "--rounds", 2), ("export", "-o", tmp_path / "shipped")):
        assert cli(command[0], net, *command[1:])[0] == 0


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("size", [-2, -5, -(2**31)])
def test_other_negative_sizes_are_one_sentence(tmp_path: Path, axis: int, size: int) -> None:
    sizes = [1, 3, 12, 12]
    sizes[axis] = size
    net = declared(tmp_path / "net.onnx", *sizes)
    np.savez(tmp_path / "d.npz", x=np.zeros((40, 3, 12, 12), np.float32), y=np.arange(40) % 10)
    for command in (
        ("inspect",), ("bench",), ("export", "-o", tmp_path / "shipped"), ("profile", "-o", tmp_path / "t.json"),
        ("compress", "-o", tmp_path / "o.onnx", "--macs", 0.6), ("evaluate", "--data", tmp_path / "d.npz"),
        ("quantize", "-o", tmp_path / "o.onnx", "--data", tmp_path / "d.npz"),
    ):  # fmt: skip
        code, message = cli(command[0], net, *command[1:])
        assert code == 1 and f"declares a size of {size}" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npz", "net.onnx"]


def states(path: Path) -> Path:
    """A step of a recurrent net, whose state has the batch second, and a length that two inputs share."""
    arrays = {"w": weights(64, 32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="layer"),
        helper.make_node("ReduceMean", ["state"], ["s"], axes=[0], keepdims=0),
        helper.make_node("Unsqueeze", ["s", "one"], ["u"]),
        helper.make_node("Add", ["p", "u"], ["a"]),
        helper.make_node("Mul", ["a", "gate"], ["y"]),
    ]
    inputs = [
        info("x", ["batch", "seq", 64]), info("state", [2, "batch", 32]), info("gate", ["batch", "seq", 1])
    ]  # fmt: skip
    return save(model(nodes, inputs, [info("y", None)], arrays | {"one": np.array([1])}), path)


def test_one_name_is_one_size(tmp_path: Path) -> None:
    opened = open_model(states(tmp_path / "net.onnx"))
    assert input_dims(opened) == {"x": (1, None, 64), "state": (2, 1, 32), "gate": (1, None, 1)}
    given = {"x": (4, 9, 64)}
    assert input_dims(opened, given) == {"x": (4, 9, 64), "state": (2, 4, 32), "gate": (4, 9, 1)}
    assert trp_onnx.bench([tmp_path / "net.onnx"], rounds=2, input_shapes=given).shapes == {
        "x": (4, 9, 64), "state": (2, 4, 32), "gate": (4, 9, 1)
    }  # fmt: skip
    shapes = trp_onnx.bench([tmp_path / "net.onnx"], rounds=2).shapes
    assert shapes["state"] == (2, 1, 32) and shapes["x"][1] == shapes["gate"][1]


def test_what_is_fed_gives_the_sizes(tmp_path: Path) -> None:
    opened = open_model(states(tmp_path / "net.onnx"))
    fed = {"x": np.zeros((8, 5, 64)), "state": np.zeros((2, 8, 32)), "gate": np.zeros((8, 5, 1))}
    assert sizes_from(opened, fed) == {"x": (1, 5, 64), "state": (2, 1, 32), "gate": (1, 5, 1)}
    assert sizes_from(opened, fed, {"x": (8, 5, 64)})["x"] == (8, 5, 64)
    with pytest.raises(trp_onnx.UsageError, match="contradicts the data"):
        sizes_from(opened, fed, {"x": (1, 7, 64)})


def test_inspect_and_profile_take_the_sizes_of_given_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_on(monkeypatch, tmp_path)
    net = save(
        model(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
            [info("x", ["n", "steps", 64])], [info("y", ["n", "steps", 96])], {"w": weights(64, 96)},
        ),
        tmp_path / "net.onnx",
    )  # fmt: skip
    assert trp_onnx.inspect(net).layers[0].macs is None
    np.savez(tmp_path / "i.npz", x=rng().standard_normal((1, 7, 64)).astype(np.float32))
    assert trp_onnx.inspect(net, inputs=tmp_path / "i.npz").layers[0].macs == 7 * 64 * 96
    assert cli("inspect", net, "--inputs", tmp_path / "i.npz")[0] == 0
    table = trp_onnx.profile(net, inputs=tmp_path / "i.npz", scheme="svd")
    assert "7x" in table.signatures["fc"] or "on 7" in table.signatures["fc"]
    np.savez(tmp_path / "i.npz", z=np.zeros((1, 7, 64)))
    for command in (("inspect",), ("profile", "-o", tmp_path / "t.json")):
        code, message = cli(command[0], net, *command[1:], "--inputs", tmp_path / "i.npz")
        assert code == 1 and "no array for input 'x'" in message


@pytest.mark.parametrize("wrong", [-1, 10, 900])
def test_labels_that_fit_no_class_come_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    """With --test, and where labels judge candidates: nothing is planned before."""
    net = batch_in_reshape(tmp_path / "net.onnx")
    x, y = rng(3).standard_normal((220, 3, 8, 8)).astype(np.float32), np.arange(220) % 10
    np.savez(tmp_path / "good.npz", x=x, y=y)
    y[:150] = np.where(np.arange(150) % 3, y[:150], wrong)
    np.savez(tmp_path / "bad.npz", x=x, y=y)
    monkeypatch.setattr("trp_onnx.passes.network.normalise", None)
    monkeypatch.setattr("trp_onnx.quantization.quantizer._quantise", None)
    good, bad, out = tmp_path / "good.npz", tmp_path / "bad.npz", tmp_path / "out.onnx"
    for arguments in (
        ("compress", net, "-o", out, "--macs", 0.7, "--test", bad),
        ("compress", net, "-o", out, "--max-drop", 1, "--data", bad),
        ("quantize", net, "-o", out, "--data", good, "--test", bad),
    ):
        code, message = cli(*arguments)
        assert code == 1 and f"has label {wrong}, but the model has 10 classes" in message


def test_a_metric_that_wants_labels_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = batch_in_reshape(tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=rng(3).standard_normal((64, 3, 8, 8)).astype(np.float32))
    monkeypatch.setattr("trp_onnx.quantization.quantizer._quantise", None)
    data = tmp_path / "x.npz"
    for more in (("--test", data), ()):
        code, message = cli("quantize", net, "-o", tmp_path / "out.onnx", "--data", data, "--metric", "top-1", *more)
        assert code == 1 and "has no labels, which --metric top-1 wants" in message


def test_an_error_names_the_models_own_inputs(tmp_path: Path) -> None:
    net = states(tmp_path / "net.onnx")
    code, message = cli("compress", net, "-o", tmp_path / "out.onnx", "--macs", 0.6)
    assert code == 1 and "--input-shape x:1,16,64" in message and "1,3,224,224" not in message
    code, message = cli("inspect", net, "--input-shape", "z:1,2")
    assert code == 1 and "'x' (batch,seq,64), 'state' (2,batch,32) and 'gate' (batch,seq,1)" in message


INT64 = TensorProto.INT64


def encoder(path: Path, words: int = 500, seq: int | str = "seq") -> Path:
    """Token, type and position tables, a mask, two products: what a text encoder does with its inputs."""
    arrays = {
        "words": weights(words, 32), "types": weights(2, 32, seed=1), "places": weights(40, 32, seed=2),
        "w": weights(32, 32, seed=3), "v": weights(32, 32, seed=4), "one": np.array(1, np.float32),
        "far": np.array(-1e4, np.float32), "last": np.array([2]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["e"]),
        helper.make_node("Gather", ["types", "kinds"], ["t"]),
        helper.make_node("Cast", ["at"], ["at32"], to=TensorProto.INT32),
        helper.make_node("Gather", ["places", "at32"], ["p"]),
        helper.make_node("Sum", ["e", "t", "p"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["q"], name="layer1"),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "m"], ["gone"]),
        helper.make_node("Mul", ["gone", "far"], ["bias"]),
        helper.make_node("Unsqueeze", ["bias", "last"], ["b"]),
        helper.make_node("Add", ["q", "b"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="layer2"),
    ]
    inputs = [info(name, ["batch", seq], INT64) for name in ("input_ids", "kinds", "at", "mask")]
    return save(model(nodes, inputs, [info("y", ["batch", seq, 32])], arrays), path)


def test_generated_ids_lie_in_their_tables(tmp_path: Path) -> None:
    made = generate(open_model(encoder(tmp_path / "net.onnx")))
    ids, kinds, at, mask = (made.arrays[name] for name in ("input_ids", "kinds", "at", "mask"))
    assert ids.shape == (1, 16) and ids.dtype == np.int64
    assert len(np.unique(ids)) > 8 and 40 < ids.max() < 500 and ids.min() >= 0
    assert set(np.unique(kinds)) == {0, 1} and at.max() < 40 and (mask == 1).all()
    assert made.description == (
        "input_ids: random ids below 500; kinds: random ids below 2; at: random ids below 40; mask: ones"
    )
    report = compress(tmp_path / "net.onnx", tmp_path / "out.onnx", macs=0.5, align=1, input_shapes={
        "input_ids": (1, 9)
    })  # fmt: skip
    assert "input_ids: random ids below 500" in report.verified_on and "mask: ones" in report.verified_on


def one_op(path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], **arrays: np.ndarray) -> Path:
    return save(model(nodes, inputs, [info("y", None)], arrays), path)


def test_generated_ids_of_neighbours(tmp_path: Path) -> None:
    """Behind other operators, with an offset, of a quantised table, of a one-hot depth, of an activation."""
    node = helper.make_node
    ids, table = info("ids", [1, 6], INT64), weights(9, 4)
    few = {"scale": np.float32(0.1), "zero": np.int8(0)}
    whole = np.arange(36, dtype=np.int8).reshape(9, 4)
    cases = {
        "offset": ([node("Add", ["ids", "two"], ["i"]), node("Gather", ["t", "i"], ["y"])],
                   {"t": table, "two": np.array([2])}, 7),
        "reshaped": ([node("Reshape", ["ids", "s"], ["i"]), node("Gather", ["t", "i"], ["y"])],
                     {"t": table, "s": np.array([-1])}, 9),
        "int8": ([node("DequantizeLinear", ["q", "scale", "zero"], ["t"]), node("Gather", ["t", "ids"], ["y"])],
                 few | {"q": whole}, 9),
        "columns": ([node("Gather", ["t", "ids"], ["y"], axis=1)], {"t": table}, 4),
        "one hot": ([node("OneHot", ["ids", "depth", "values"], ["y"])],
                    {"depth": np.array(5), "values": np.array([0, 1], np.float32)}, 5),
    }  # fmt: skip
    for name, (nodes, arrays, below) in cases.items():
        opened = open_model(one_op(tmp_path / "net.onnx", nodes, [ids], **arrays))
        made = [generate(opened, seed=seed).arrays["ids"] for seed in range(20)]
        assert np.max(made) == below - 1 and np.min(made) == 0, name
    nodes = [node("Relu", ["x"], ["h"]), node("Gather", ["h", "which"], ["y"], axis=1)]
    opened = open_model(one_op(tmp_path / "net.onnx", nodes, [info("x", [1, "T", 4]), info("which", [1], INT64)]))
    assert np.max([generate(opened, {"x": (1, 5, 4)}, seed).arrays["which"] for seed in range(30)]) == 4


def test_generated_masks_lengths_and_numbers(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [  # as a speech net does: positions below the length count, at the rate that it knows
        node("Range", ["zero", "size", "one"], ["r"]),
        node("Unsqueeze", ["lengths", "axis"], ["n"]),
        node("Less", ["r", "n"], ["real"]),
        node("Unsqueeze", ["real", "axes"], ["mask"]),
        node("Where", ["mask", "x", "nothing"], ["kept"]),
        node("Equal", ["rate", "known"], ["same"]),
        node("Cast", ["same"], ["factor"], to=TensorProto.FLOAT),
        node("Mul", ["kept", "factor"], ["scaled"]),
        node("Add", ["scaled", "noise"], ["y"]),
    ]
    arrays = {
        "zero": np.array(0), "size": np.array(12), "one": np.array(1), "axis": np.array([1]), "axes": np.array([2]),
        "nothing": np.float32(0), "known": np.array(16000),
    }  # fmt: skip
    inputs = [
        info("x", ["batch", 12, 8]),
        info("lengths", ["batch"], INT64),
        info("rate", [], INT64),
        info("noise", []),
    ]
    made = generate(open_model(one_op(tmp_path / "net.onnx", nodes, inputs, **arrays)))
    assert made.arrays["lengths"] == [12] and made.arrays["rate"] == 16000 and made.arrays["noise"] == 1
    assert made.arrays["x"].std() > 0.5
    opened = open_model(one_op(
        tmp_path / "flag.onnx", [node("Where", ["flag", "x", "x"], ["y"])],
        [info("x", [1, 4]), info("flag", [1, 4], TensorProto.BOOL)],
    ))  # fmt: skip
    assert generate(opened).arrays["flag"].all()
    nodes = [node("Cast", ["pixels"], ["f"], to=TensorProto.FLOAT), node("Sub", ["f", "mean"], ["y"])]
    opened = open_model(one_op(tmp_path / "b.onnx", nodes, [info("pixels", [1, 8, 8, 3], TensorProto.UINT8)],
                               mean=np.float32(128)))  # fmt: skip
    pixels = generate(opened).arrays["pixels"]
    assert pixels.dtype == np.uint8 and pixels.min() < 60 and pixels.max() > 200


def test_compression_without_data_sees_what_it_does_to_a_text_encoder(tmp_path: Path) -> None:
    """With all ids 0 and nothing attended to there was nothing to see."""
    report = compress(encoder(tmp_path / "net.onnx", seq=8), tmp_path / "out.onnx", macs=0.5, align=1)
    assert report.outputs[0].relative_error > 0.05


def pooled(path: Path, shape: list[int | str], channels: int = 0, opset: int = 17) -> Path:
    """Pooled over all but the first axis of a sample, then a product: the answer depends on what stands first."""
    width = channels or int(shape[1])
    arrays = {"w": weights(width * 2, width, 1, 1), "fc": weights(width * 2, 6, seed=5)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["y"], name="fc"),
    ]
    return save(model(nodes, [info("x", shape)], [info("y", ["N", 6])], arrays), path)


def channels_last(path: Path, shape: list[int | str]) -> Path:
    """The same for a model that takes its channels last."""
    width = int(shape[-1])
    arrays = {"w": weights(width * 2, width, 1, 1), "fc": weights(width * 2, 6, seed=5)}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["y"], name="fc"),
    ]
    return save(model(nodes, [info("x", shape)], [info("y", ["N", 6])], arrays), path)


def answered(path: Path, net: Path, sample: tuple[int, ...], turned: tuple[int, ...] | None = None,
             dtype: type = np.float32) -> Path:  # fmt: skip
    """40 samples with the net's own answers for labels, stored as they are or with their axes turned."""
    spread = rng(4).uniform(0, 100, (40, *(size if axis in (0, 2) else 1 for axis, size in enumerate(sample))))
    x = (rng(3).standard_normal((40, *sample)) * 20 + spread + 60).clip(0, 255).astype(dtype)
    y = open_session(net).run(None, {"x": x.astype(np.float32)})[0].argmax(axis=1)
    np.savez(path, x=x if turned is None else x.transpose(0, *turned), y=y)
    return path


EXACT = {
    "sixteen channels": (["N", 16, 16, 16], 0, (16, 16, 16)),
    "four columns": (["N", 40, 1, 4], 0, (40, 1, 4)),
    "three columns": (["N", 8, 5, 3], 0, (8, 5, 3)),
    "free sizes": (["N", 16, "h", "w"], 0, (16, 9, 16)),
    "nothing declared but the weights": (["N", "c", "h", "w"], 40, (40, 2, 3)),
    "three by three": (["N", 3, 3, 3], 0, (3, 3, 3)),
    "one channel": (["N", 1, 28, 28], 0, (1, 28, 28)),
}


@pytest.mark.parametrize("name", EXACT)
def test_arrays_of_the_inputs_shape_go_in_as_they_are(tmp_path: Path, name: str) -> None:
    shape, channels, sample = EXACT[name]
    net = pooled(tmp_path / "net.onnx", list(shape), channels)
    data = answered(tmp_path / "d.npz", net, sample)
    for options in ((), ("--layout", "nhwc"), ("--layout", "nchw")):
        code, _ = cli("evaluate", net, "--data", data, *options)
        assert code == 0
    assert trp_onnx.evaluate(net, data).value == 100
    if name in ("sixteen channels", "nothing declared but the weights"):
        made = trp_onnx.quantize(net, tmp_path / "int8.onnx", data, test=data, max_drop=50)
        assert made.variants[0].score is not None and made.variants[0].score.value == 100
        report = compress(net, tmp_path / "out.onnx", macs=0.8, align=1, data=data, test=data)
        assert report.score is not None and report.score.before.value == 100


def test_a_model_that_takes_its_channels_last(tmp_path: Path) -> None:
    net = channels_last(tmp_path / "net.onnx", ["N", 9, 9, 3])
    for dtype in (np.float32, np.uint8):
        data = answered(tmp_path / "d.npz", net, (9, 9, 3), dtype=dtype)
        assert trp_onnx.evaluate(net, data).value == 100
        turned = answered(tmp_path / "t.npz", net, (9, 9, 3), (3, 1, 2), dtype=dtype)
        assert trp_onnx.evaluate(net, turned).value == 100
    wide = channels_last(tmp_path / "wide.onnx", ["N", 5, 5, 12])
    assert trp_onnx.evaluate(wide, answered(tmp_path / "d.npz", wide, (5, 5, 12))).value == 100


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("shape", [["N", 3, 8, 10], ["N", 3, "h", "w"], ["N", "c", "h", "w"]])
def test_images_with_their_channels_last_are_turned(tmp_path: Path, shape: list[int | str], dtype: type) -> None:
    net = pooled(tmp_path / "net.onnx", shape, 3)
    data = answered(tmp_path / "d.npz", net, (3, 8, 10), (2, 3, 1), dtype=dtype)
    assert trp_onnx.evaluate(net, data).value == 100
    message = cli("evaluate", net, "--data", data, "--scale", 1)[1]
    assert ("are turned to channels, height, width" in message) == (dtype is np.float32)


def test_arrays_of_another_shape(tmp_path: Path) -> None:
    """What fits in one order only is turned, and that is said; what fits in none is refused."""
    net = pooled(tmp_path / "net.onnx", ["N", 16, 8, 8])
    data = answered(tmp_path / "d.npz", net, (16, 8, 8), (2, 3, 1))
    assert trp_onnx.evaluate(net, data).value == 100
    assert "'d.npz' are 8x8x16, read as height, width, channels" in cli("evaluate", net, "--data", data)[1]
    for wrong in ((8, 16, 8), (8, 8, 8), (16, 8, 7), (128, 8), (2, 16, 8, 8)):
        np.savez(tmp_path / "d.npz", x=np.zeros((40, *wrong), np.float32), y=np.arange(40) % 6)
        code, message = cli("evaluate", net, "--data", data)
        given = ",".join(map(str, wrong))
        assert code == 1 and f"the shape (40,{given}), but the model's input is 'x' (N,16,8,8)" in message


def test_mean_and_std_of_arrays_that_go_in_as_they_are(tmp_path: Path) -> None:
    """They count along the channels, wherever these stand."""
    x = rng().standard_normal((4, 3, 7, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    prep = trp_onnx.Preprocessing(mean=(1, 2, 3), std=(2, 4, 8))
    net = pooled(tmp_path / "net.onnx", ["N", 3, 7, 3])
    fed = fed_to(net, trp_onnx.open_data(tmp_path / "d.npz", prep))["x"]
    assert np.allclose(fed, (x - np.array([1, 2, 3]).reshape(3, 1, 1)) / np.array([2, 4, 8]).reshape(3, 1, 1))


def whole_numbers(path: Path, dtype: int = INT64) -> Path:
    """A bag of words: ids -> table -> mean -> product."""
    arrays = {"t": weights(300, 32), "w": weights(32, 24, seed=1), "v": weights(24, 6, seed=2)}
    nodes = [
        helper.make_node("Gather", ["t", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["h"], name="layer1"),
        helper.make_node("ReduceMean", ["h"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "v"], ["y"], name="layer2"),
    ]
    return save(model(nodes, [info("ids", ["N", 12], dtype)], [info("y", ["N", 6])], arrays), path)


def test_whole_numbers_for_data(tmp_path: Path) -> None:
    net = whole_numbers(tmp_path / "net.onnx")
    ids = rng().integers(0, 300, (60, 12))
    y = open_session(net).run(None, {"ids": ids})[0].argmax(axis=1)
    for dtype in (np.int64, np.int32, np.uint16, np.float32):
        np.savez(tmp_path / "d.npz", x=ids.astype(dtype), y=y)
        assert trp_onnx.evaluate(net, tmp_path / "d.npz").value == 100
    report = compress(net, tmp_path / "out.onnx", macs=0.7, align=1, data=tmp_path / "d.npz")
    assert 0 < report.outputs[0].relative_error < 1
    for wrong, complaint in ((ids + 0.5, "has fractions"), (ids.astype(np.float64) * 1e300, "has values from")):
        np.savez(tmp_path / "d.npz", x=wrong, y=y)
        code, message = cli("evaluate", net, "--data", tmp_path / "d.npz")
        assert code == 1 and (complaint in message or "too large" in message)


def test_whole_numbers_keep_their_digits(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mod", ["ids", "ten"], ["y"])]
    net = one_op(tmp_path / "net.onnx", nodes, [info("ids", ["N", 2], INT64)], ten=np.array(10))
    np.savez(tmp_path / "d.npz", x=np.array([[2**40 + 1, 2**53 + 1]]))
    assert fed_to(net, trp_onnx.open_data(tmp_path / "d.npz"))["ids"].tolist() == [[2**40 + 1, 2**53 + 1]]


GIVEN = {
    "NaN": ({"x": np.full((1, 3, 12, 12), np.nan, np.float32)}, "NaN or infinity"),
    "infinity": ({"x": np.full((1, 3, 12, 12), np.inf)}, "NaN or infinity"),
    "no sample": ({"x": np.zeros((0, 3, 12, 12), np.float32)}, "holds no sample"),
    "nothing": ({}, "holds no arrays"),
    "another name": ({"z": np.zeros((1, 3, 12, 12))}, "no array for input 'x': the model's input is 'x' (N,3,12,12)"),
    "one name too many": ({"x": np.zeros((1, 3, 12, 12)), "z": np.zeros(3)}, "has an array 'z', but"),
    "another rank": ({"x": np.zeros((3, 12, 12))}, "the shape (3,12,12), but"),
    "another shape": ({"x": np.zeros((1, 3, 13, 12))}, "the shape (1,3,13,12), but"),
    "text": ({"x": np.full((1, 3, 12, 12), "a")}, "has type <U1"),
    "complex": ({"x": np.zeros((1, 3, 12, 12), complex)}, "has type complex128"),
    "too large": ({"x": np.full((1, 3, 12, 12), 1e300)}, "too large for float32"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_given_inputs_that_make_no_sense(tmp_path: Path, name: str) -> None:
    arrays, complaint = GIVEN[name]
    net = graphs.conv_net(tmp_path / "net.onnx")
    np.savez(tmp_path / "i.npz", **arrays)
    for command in (
        ("compress", "-o", tmp_path / "out.onnx", "--macs", 0.6, "--align", 1), ("bench", "--rounds", 2),
        ("export", "-o", tmp_path / "shipped"),
    ):  # fmt: skip
        code, message = cli(command[0], net, *command[1:], "--inputs", tmp_path / "i.npz")
        assert code == 1 and complaint in message, message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i.npz", "net.onnx"]


def test_given_inputs_of_another_type(tmp_path: Path) -> None:
    """Numbers that lose nothing are taken: numpy's own float64, whole numbers for floats, other integers."""
    net = graphs.conv_net(tmp_path / "net.onnx")
    for dtype in (np.float64, np.float16, np.int64, np.uint8):
        np.savez(tmp_path / "i.npz", x=np.ones((2, 3, 12, 12), dtype))
        assert trp_onnx.bench([net], rounds=2, inputs=tmp_path / "i.npz").shapes == {"x": (2, 3, 12, 12)}
    net = whole_numbers(tmp_path / "ids.onnx")
    np.savez(tmp_path / "i.npz", ids=np.ones((2, 12), np.int32))
    assert cli("bench", net, "--rounds", 2, "--inputs", tmp_path / "i.npz")[0] == 0
    np.savez(tmp_path / "i.npz", ids=np.full((2, 12), 0.5))
    code, message = cli("bench", net, "--rounds", 2, "--inputs", tmp_path / "i.npz")
    assert code == 1 and "'ids' has fractions (type float64), the model takes whole numbers (int64)" in message


def test_a_shape_that_contradicts_the_given_inputs(tmp_path: Path) -> None:
    net = pooled(tmp_path / "net.onnx", ["N", 3, "h", "w"])
    np.savez(tmp_path / "i.npz", x=np.zeros((2, 3, 8, 9), np.float32))
    code, message = cli("bench", net, "--inputs", tmp_path / "i.npz", "--input-shape", "x:1,3,8,8")
    assert code == 2 and "contradicts the data" in message
    assert cli("bench", net, "--rounds", 2, "--inputs", tmp_path / "i.npz", "--input-shape", "x:1,3,8,9")[0] == 0


def test_a_batch_that_does_not_run_is_compressed(tmp_path: Path) -> None:
    net = batch_in_reshape(tmp_path / "net.onnx")
    data = labelled(tmp_path / "d.npz", net, 40, 3, 8, 8)
    report = compress(net, tmp_path / "out.onnx", macs=0.7, align=1, test=data)
    assert report.score is not None and report.score.before.value == 100
    assert report.verified_on == "1 sample of d.npz"


def test_sizes_come_from_the_data(tmp_path: Path) -> None:
    """A net that declares neither height nor width costs what it costs on the samples."""
    net, fixed = pooled(tmp_path / "net.onnx", ["N", 3, "h", "w"]), pooled(tmp_path / "f.onnx", [1, 3, 20, 30])
    np.savez(tmp_path / "d.npz", x=rng().standard_normal((40, 3, 20, 30)).astype(np.float32))
    np.savez(tmp_path / "i.npz", x=rng().standard_normal((5, 3, 20, 30)).astype(np.float32))
    wanted = compress(fixed, tmp_path / "out.onnx", energy=0.3, align=1).macs.before
    assert wanted > 20 * 30 * 18
    for given in ({"data": tmp_path / "d.npz"}, {"test": tmp_path / "d.npz"}, {"inputs": tmp_path / "i.npz"}):
        report = compress(net, tmp_path / "out.onnx", energy=0.3, align=1, **given)
        assert report.macs.before == wanted
    code, message = cli(
        "compress", net, "-o", tmp_path / "o.onnx", "--macs", 0.6, "--data", tmp_path / "d.npz", "--input-shape",
        "x:1,3,20,20",
    )  # fmt: skip
    assert code == 2 and "contradicts the data" in message


@pytest.mark.usefixtures("training_runtime")
def test_a_batch_that_does_not_run_is_trained(tmp_path: Path) -> None:
    """And the samples go in as they are there too, though they could be read as 16 rows of 8 by 8."""
    net = batch_in_reshape(tmp_path / "net.onnx", channels=16)
    data = labelled(tmp_path / "d.npz", net, 80, 16, 8, 8)
    report = compress(
        net, tmp_path / "out.onnx", macs=0.7, align=1, data=data, test=data,
        train=trp_onnx.TrainingOptions(epochs=1, batch=16, validation=0.2, augment=()),
    )  # fmt: skip
    assert report.score is not None and report.score.before.value == 100
    assert report.trained is not None and report.trained.written_correct == report.trained.correct
