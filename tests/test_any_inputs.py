"""Data for any inputs, in any form: token ids with masks, recurrent state, scalars, samples of different sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import trp_onnx
from tests.easy import compress
from tests.graphs import info, initializers, model, rng, save, weights
from tests.test_inputs import cli
from trp_onnx.graph.session import open_session

INT64 = TensorProto.INT64
node = helper.make_node


def classifier(path: Path, seq: int | str = "seq") -> Path:
    """Token ids and their mask -> two products -> the mean of what is not masked -> six classes."""
    arrays = {
        "table": weights(40, 24), "w1": weights(24, 24, seed=1), "w2": weights(24, 24, seed=2),
        "head": 3 * weights(24, 6, seed=3), "last": np.array([2]), "along": np.array([1]),
    }  # fmt: skip
    nodes = [
        node("Gather", ["table", "input_ids"], ["e"]),
        node("MatMul", ["e", "w1"], ["h1"], name="layer1"),
        node("Relu", ["h1"], ["r"]),
        node("MatMul", ["r", "w2"], ["h2"], name="layer2"),
        node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["m", "last"], ["m3"]),
        node("Mul", ["h2", "m3"], ["kept"]),
        node("ReduceSum", ["kept", "along"], ["sum"], keepdims=0),
        node("ReduceSum", ["m", "along"], ["count"], keepdims=1),
        node("Div", ["sum", "count"], ["mean"]),
        node("MatMul", ["mean", "head"], ["logits"], name="head"),
    ]
    inputs = [info(name, ["batch", seq], INT64) for name in ("input_ids", "attention_mask")]
    return save(model(nodes, inputs, [info("logits", ["batch", 6])], arrays), path)


def recurrent(path: Path) -> Path:
    """A step as a speech detector takes it: sound, a state with the batch second, the sampling rate."""
    arrays = {
        "w": weights(32, 24), "u": weights(24, 24, seed=1), "head": 3 * weights(24, 6, seed=2),
        "first": np.array(0), "zero": np.array([0]), "known": np.array(16000), "one": np.float32(1),
        "slow": np.float32(0.5),
    }  # fmt: skip
    nodes = [
        node("Gather", ["state", "first"], ["s"], axis=0),
        node("MatMul", ["input", "w"], ["p"], name="sound"),
        node("MatMul", ["s", "u"], ["q"], name="memory"),
        node("Add", ["p", "q"], ["a"]),
        node("Tanh", ["a"], ["h"]),
        node("Equal", ["sr", "known"], ["same"]),
        node("Where", ["same", "one", "slow"], ["factor"]),
        node("Mul", ["h", "factor"], ["scaled"]),
        node("MatMul", ["scaled", "head"], ["logits"], name="out"),
        node("Unsqueeze", ["h", "zero"], ["h1"]),
        node("Concat", ["h1", "h1"], ["stateN"], axis=0),
    ]
    inputs = [info("input", [None, 32]), info("state", [2, None, 24]), info("sr", [], INT64)]
    outputs = [info("logits", [None, 6]), info("stateN", [2, None, 24])]
    return save(model(nodes, inputs, outputs, arrays), path)


def tokens(count: int = 240, seq: int = 9) -> dict[str, np.ndarray]:
    """Ids, and masks of sentences of 2 to 9 tokens."""
    lengths = rng(1).integers(2, seq + 1, (count, 1))
    mask = (np.arange(seq) < lengths).astype(np.int64)
    return {"input_ids": rng().integers(1, 40, (count, seq)) * mask, "attention_mask": mask}


def steps(count: int = 240) -> dict[str, np.ndarray]:
    return {
        "input": rng().standard_normal((count, 32)).astype(np.float32),
        "state": rng(1).standard_normal((2, count, 24)).astype(np.float32), "sr": np.array(16000),
    }  # fmt: skip


def answers(net: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The classes that a model gives itself, for labels."""
    found: np.ndarray = open_session(net).run(["logits"], feeds)[0].argmax(axis=1)
    return found


NETS = {"text": (classifier, tokens, {}), "speech": (recurrent, steps, {"state": 1, "sr": None})}
"""A net, its samples, and where these do not stand along the first axis."""


def one(samples: dict[str, np.ndarray], axes: dict[str, int | None], index: int) -> dict[str, np.ndarray]:
    """What the model takes of one sample, at batch 1."""
    return {
        name: array if axes.get(name, 0) is None else np.take(array, [index], axes.get(name, 0) or 0)
        for name, array in samples.items()
    }


class Reader:
    """As ONNX Runtime's quantiser reads its calibration data."""

    def __init__(self, items: list[dict[str, np.ndarray]]) -> None:
        self._items = iter(items)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


def folder(path: Path, items: list[dict[str, np.ndarray]], y: np.ndarray) -> Path:
    path.mkdir()
    for i, item in enumerate(items):
        np.savez(path / f"{i:04}.npz", **item, y=y[i])
    return path


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("name", NETS)
def test_every_form_gives_the_same_samples(tmp_path: Path, name: str) -> None:
    make, draw, axes = NETS[name]
    net, samples = make(tmp_path / "net.onnx"), draw(40)
    y = answers(net, samples)
    items = [one(samples, axes, i) for i in range(40)]
    stacked = {key: np.stack([item[key] for item in items]) for key in samples}
    without = [{k: v if axes.get(k, 0) is None else v.squeeze(axes.get(k, 0)) for k, v in e.items()} for e in items]
    forms = {
        "an .npz, samples along the batch axis": npz(tmp_path / "a.npz", **samples, y=y),
        "an .npz of feeds": npz(tmp_path / "b.npz", **stacked, y=y),
        "a folder of .npz files": folder(tmp_path / "c", items, y),
        "a mapping": samples | {"y": y},
        "a generator": ((item, label) for item, label in zip(items, y, strict=True)),
        "a generator of samples without a batch axis": ((e, label) for e, label in zip(without, y, strict=True)),
        "feeds of many samples": [(samples, y)],
        "an open data set": trp_onnx.open_data(samples | {"labels": y}),
    }
    for form, data in forms.items():
        found = trp_onnx.evaluate(net, data)
        assert (found.value, found.samples) == (100, 40), form
    assert len(set(y)) > 2


def test_a_model_with_one_input_takes_arrays_alone(tmp_path: Path) -> None:
    net = save(
        model([node("MatMul", ["sound", "w"], ["logits"])], [info("sound", ["N", 20])], [info("logits", ["N", 6])],
              {"w": weights(20, 6)}),
        tmp_path / "net.onnx",
    )  # fmt: skip
    x = rng().standard_normal((40, 20)).astype(np.float32)
    y = answers(net, {"sound": x})
    np.save(tmp_path / "x.npy", x)
    pairs = list(zip(x, y, strict=True))
    forms = [(x, y), {"x": x, "y": y}, {"sound": x, "y": y}, pairs, iter(pairs), [(x[:30], y[:30]), (x[30:], y[30:])]]
    for data in forms:
        assert trp_onnx.evaluate(net, data).value == 100
    for data in (x, tmp_path / "x.npy", list(x), Reader([{"sound": x[i : i + 4]} for i in range(0, 40, 4)])):
        assert trp_onnx.quantize(net, tmp_path / "int8.onnx", data, max_drop=50).layers == 1


def test_a_function_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder too; with or without the arguments that training gives it."""
    net, samples = classifier(tmp_path / "net.onnx"), tokens(40)
    npz(tmp_path / "d.npz", **samples, y=answers(net, samples))
    (tmp_path / "my_samples.py").write_text(
        "import numpy as np\n"
        "def draw(limit=40):\n"
        "    with np.load('d.npz') as d:\n"
        "        for i in range(limit):\n"
        "            yield {n: d[n][i:i+1] for n in ('input_ids', 'attention_mask')}, d['y'][i]\n"
        "def both(split, epoch):\n"
        "    assert (split, epoch) == ('train', 0)\n"
        "    return draw()\n"
        "def broken():\n"
        "    yield from draw(3)\n"
        "    raise RuntimeError('no such table')\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("draw", "both"):
        assert trp_onnx.evaluate(net, f"my_samples:{name}").value == 100
    for name, complaint in (("broken", "RuntimeError: no such table"), ("nothing", "cannot be imported")):
        code, message = cli("evaluate", net, "--data", f"my_samples:{name}")
        assert code == 1 and complaint in message and message.count("error:") == 1


def test_what_does_not_fit_is_one_sentence_that_names_the_inputs(tmp_path: Path) -> None:
    net, samples = classifier(tmp_path / "net.onnx", seq=9), tokens(40)
    inputs = "the model's inputs are 'input_ids' (batch,9) and 'attention_mask' (batch,9)"
    ids, mask = samples["input_ids"], samples["attention_mask"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"input_ids": ids}, f"no array for input 'attention_mask': {inputs}"),
        ({"x": ids}, f"no array for input 'input_ids': {inputs}"),
        ({"input_ids": ids, "attention_mask": mask[:30]}, "40 samples at 'input_ids' and 30 at 'attention_mask'"),
        ({"input_ids": ids, "attention_mask": mask[:, :8]}, f"'attention_mask' the shape (40,8), but {inputs}"),
        ({"input_ids": ids, "attention_mask": mask[0]}, f"'attention_mask' the shape (9), but {inputs}"),
        ({"input_ids": ids + 0.5, "attention_mask": mask}, "'input_ids' has fractions"),
        ({"input_ids": ids, "attention_mask": mask.astype("U3")}, "'attention_mask' has type <U3"),
        (samples | {"y": np.zeros(39, np.int64)}, "40 samples but 39 labels"),
    ]
    for arrays, complaint in wrong:
        with pytest.raises(trp_onnx.DataError) as error:
            trp_onnx.evaluate(net, {"y": np.zeros(40, np.int64)} | arrays)
        assert complaint in str(error.value), str(error.value)
    texts = folder(
        tmp_path / "texts", [{"input_ids": ids[i], "attention_mask": mask[i]} for i in range(3)], np.zeros(3)
    )
    npz(texts / "0001.npz", input_ids=ids[1], y=np.zeros(()))
    with pytest.raises(trp_onnx.DataError, match=r"texts, 0001\.npz' has no array for input 'attention_mask'"):
        trp_onnx.evaluate(net, texts)
    npz(texts / "0001.npz", input_ids=ids[1], attention_mask=mask[1])
    with pytest.raises(trp_onnx.DataError, match=r"texts, 0001\.npz' has no labels, 2 others have"):
        trp_onnx.evaluate(net, texts)
    for data, complaint in (([], "holds no samples"), (7, "not as int"), ([[[1], [1, 2]]], "is no array")):
        with pytest.raises(trp_onnx.DataError, match=complaint):
            trp_onnx.evaluate(net, data)  # type: ignore[arg-type]


def test_what_is_given_once_is_the_same_for_all(tmp_path: Path) -> None:
    net, samples = recurrent(tmp_path / "net.onnx"), steps(40)
    fresh = samples | {"state": np.zeros((2, 1, 24), np.float32)}
    y = answers(net, samples | {"state": np.zeros((2, 40, 24), np.float32)})
    assert trp_onnx.evaluate(net, fresh | {"y": y}).value == 100


def test_scalars_that_differ_go_in_with_their_own_samples(tmp_path: Path) -> None:
    net, samples = recurrent(tmp_path / "net.onnx"), steps(40)
    items = [one(samples, NETS["speech"][2], i) | {"sr": np.array(16000 if i % 3 else 8000)} for i in range(40)]
    y = np.concatenate([answers(net, item) for item in items])
    assert trp_onnx.evaluate(net, zip(items, y, strict=True)).value == 100


def pooled(path: Path) -> Path:
    """Of images of any size six classes."""
    arrays = {"w": weights(12, 3, 3, 3), "v": weights(12, 12, 3, 3, seed=1), "fc": 3 * weights(12, 6, seed=2)}
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["d"], name="conv2", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["d"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "fc"], ["logits"], name="fc"),
    ]
    return save(model(nodes, [info("x", ["N", 3, "h", "w"])], [info("logits", ["N", 6])], arrays), path)


def sized(net: Path, count: int = 240) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Images of four sizes, some beside others of their own."""
    for i in range(count):
        x = rng(i).standard_normal((1, 3, 8 + 2 * (i // 3 % 2), 8 + 4 * (i // 5 % 2))).astype(np.float32)
        yield {"x": x + rng(i).standard_normal((1, 3, 1, 1)).astype(np.float32)}, answers(net, {"x": x})


def test_sizes_may_differ_from_sample_to_sample(tmp_path: Path) -> None:
    net = pooled(tmp_path / "net.onnx")
    items = [item for item, _ in sized(net, 60)]
    y = np.concatenate([answers(net, item) for item in items])
    assert trp_onnx.evaluate(net, folder(tmp_path / "d", items, y)).value == 100
    made = trp_onnx.quantize(net, tmp_path / "int8.onnx", items, test=zip(items, y, strict=True), max_drop=50)
    assert made.layers == 3 and made.variants[0].score is not None and made.variants[0].score.value == 100


def test_more_than_the_memory_that_is_given_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator is drawn once; what is beyond the bound is on disk, and nothing of it stays."""
    monkeypatch.setattr("trp_onnx.data.spool.SPOOL_BYTES", 10_000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    net, samples = recurrent(tmp_path / "net.onnx"), steps(200)
    y, drawn = answers(net, samples), []

    def draw() -> Iterator[Any]:
        for i in range(200):
            drawn.append(i)
            yield one(samples, NETS["speech"][2], i), y[i]

    data = trp_onnx.open_data(draw())
    for _ in range(2):
        assert trp_onnx.evaluate(net, data).value == 100
    assert drawn == list(range(200))
    del data
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_large_array_is_mapped_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not compressed; what is must fit in memory."""
    monkeypatch.setattr("trp_onnx.data.npz.MAPPED_FROM", 1000)
    monkeypatch.setattr("trp_onnx.process.memory.available", lambda: 0)
    net, samples = recurrent(tmp_path / "net.onnx"), steps(200)
    samples["input"] = np.asfortranarray(samples["input"])
    data = trp_onnx.open_data(npz(tmp_path / "d.npz", **samples, y=answers(net, samples)))
    assert isinstance(data.store.sample("input"), np.memmap)
    assert trp_onnx.evaluate(net, data).value == 100


def test_images_beside_another_input(tmp_path: Path) -> None:
    """Preprocessing is for the images; where nothing says which of two inputs these are, the user does."""
    arrays = {"fc": 3 * weights(12, 6)}
    nodes = [
        node("GlobalAveragePool", ["image"], ["p"]), node("GlobalAveragePool", ["other"], ["o"]),
        node("Concat", ["p", "o"], ["b"], axis=1), node("Flatten", ["b"], ["f"]),
        node("Concat", ["f", "size"], ["g"], axis=1), node("MatMul", ["g", "fc"], ["logits"]),
    ]  # fmt: skip
    inputs = [info("image", ["N", 3, 8, 8]), info("other", ["N", 3, 8, 8]), info("size", ["N", 6])]
    net = save(model(nodes, inputs, [info("logits", ["N", 6])], arrays), tmp_path / "net.onnx")
    pixels = rng().integers(0, 255, (40, 8, 8, 3), np.uint8) // 8 + rng(1).integers(0, 224, (40, 1, 1, 3), np.uint8)
    feeds = {
        "image": pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255,
        "other": rng(2).standard_normal((40, 3, 8, 8)).astype(np.float32),
        "size": rng(3).standard_normal((40, 6)).astype(np.float32),
    }
    data = feeds | {"image": pixels, "y": answers(net, feeds)}
    assert trp_onnx.evaluate(net, data, preprocessing=trp_onnx.Preprocessing(scale=1 / 255, input="image")).value == 100
    for which in (None, "nothing"):
        with pytest.raises(trp_onnx.UsageError, match="input"):
            trp_onnx.evaluate(net, data, preprocessing=trp_onnx.Preprocessing(scale=1 / 255, input=which))


@pytest.mark.parametrize("name", NETS)
def test_networks_with_several_inputs_are_quantised(tmp_path: Path, name: str) -> None:
    make, draw, _ = NETS[name]
    net, samples = make(tmp_path / "net.onnx"), draw()
    y = answers(net, samples)
    made = trp_onnx.quantize(net, tmp_path / "int8.onnx", samples, test=samples | {"y": y}, max_drop=5)
    accuracy = [variant.score for variant in made.variants]
    assert made.layers >= 2 and accuracy[0] is not None and accuracy[0].value == 100
    assert accuracy[1] is not None and accuracy[1].value > 80
    onnx.checker.check_model(str(tmp_path / "int8.onnx"))


def test_given_inputs_take_every_form(tmp_path: Path) -> None:
    net, samples = recurrent(tmp_path / "net.onnx"), steps(3)
    items = [one(samples, NETS["speech"][2], i) for i in range(3)]
    shapes = {"input": (3, 32), "state": (2, 3, 24), "sr": ()}
    for data in (npz(tmp_path / "i.npz", **samples), items, Reader(items), folder(tmp_path / "i", items, np.zeros(3))):
        assert trp_onnx.bench([net], rounds=2, inputs=data).shapes == shapes
    assert compress(net, tmp_path / "out.onnx", macs=0.7, align=1, inputs=items).verified_on == "the inputs"
    assert cli("export", net, "-o", tmp_path / "app", "--inputs", tmp_path / "i")[0] == 0


@pytest.mark.parametrize("options", [{}, {"asymmetric": True}], ids=["alone", "in turn"])
@pytest.mark.parametrize("name", ["text", "speech"])
def test_networks_with_several_inputs_keep_their_outputs_by_data(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """The samples hold few words, or sounds of few directions, which the weights alone do not tell."""
    make, draw, axes = NETS[name]
    net, samples = make(tmp_path / "net.onnx"), draw(240)
    if name == "text":
        samples["input_ids"] %= 6  # of forty words
    else:
        samples["input"] = (samples["input"][:, :4] @ rng(9).standard_normal((4, 32))).astype(np.float32)
    items = [one(samples, axes, i) for i in range(240)]
    plan = {"macs": 0.6, "align": 1, "scheme": "svd"} | options
    blind = compress(net, tmp_path / "blind.onnx", macs=0.6, align=1, scheme="svd", inputs=samples)
    for data in (samples,) if options else (samples, iter(items), Reader(items)):
        report = compress(net, tmp_path / "out.onnx", data=data, **plan)
        assert "of the data given" in report.verified_on
        assert report.outputs[0].relative_error < 0.6 * blind.outputs[0].relative_error


def test_padding_is_no_data(tmp_path: Path) -> None:
    """What stands behind the end of a sentence changes nothing, unless the model takes one length alone."""
    mask = (np.arange(9) < np.repeat([[3], [6]], 64, axis=0)).astype(np.int64)
    words, others = (rng(seed).integers(1, 40, mask.shape) for seed in (0, 1))
    for seq, left_out in (("seq", True), (9, False)):
        net, found = classifier(tmp_path / "net.onnx", seq), []
        for behind in (0 * others, others):
            samples = {"input_ids": np.where(mask, words, behind), "attention_mask": mask}
            report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=samples)
            assert any("50% of the data is padding by 'attention_mask'" in note for note in report.notes) == left_out
            found.append(initializers(tmp_path / "out.onnx"))
        same = [np.array_equal(array, found[1].get(name, np.zeros(0))) for name, array in found[0].items()]
        assert all(same) == left_out


def test_networks_are_compressed_by_samples_of_different_sizes(tmp_path: Path) -> None:
    net = pooled(tmp_path / "net.onnx")
    pairs = [(item, answers(net, item)) for item, _ in sized(net)]
    for options in ({}, {"asymmetric": True}):
        report = compress(net, tmp_path / "out.onnx", macs=0.6, align=1, data=pairs, test=iter(pairs), **options)
        assert report.score is not None and report.score.before.value == 100 and report.score.after.value > 70
        assert 0 < report.macs.after < report.macs.before
