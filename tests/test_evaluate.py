"""Files are judged by any metric: through the command line and the API, with labels, without, beside the original."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

import trp_onnx
from tests import graphs
from tests.clockwork import runs_on
from tests.easy import compress
from tests.graphs import info, model, rng, save, weights
from trp_onnx.cli.main import main
from trp_onnx.errors import DataError, UsageError
from trp_onnx.evaluation.built_in import BUILT_IN
from trp_onnx.evaluation.outputs import NAMES

OWN = """
import numpy as np
import trp_onnx


@trp_onnx.metric(unit="%", higher_is_better=False)
def wrong_tokens(outputs, labels):
    return 100 * float((outputs["logits"].argmax(axis=-1) != labels).mean())


def gap(outputs, original):
    return float(np.abs(outputs["logits"] - original["logits"]).mean())


gap.higher_is_better = False


class Streamed:
    unit, higher_is_better = "%", False

    def __init__(self):
        self.wrong = self.all = 0

    def update(self, outputs, labels):
        self.wrong += int((outputs["logits"].argmax(axis=-1) != labels).sum())
        self.all += labels.size

    def result(self):
        return 100 * self.wrong / self.all


def words(outputs, labels):
    return "many"
"""


def cli(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, " ".join((result.stdout + result.stderr).split())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the current folder."""
    (tmp_path / "own_metrics.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_metrics", raising=False)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Scores of 12 classes for each of 5 tokens, and the same network with noise on its weights."""
    folder = tmp_path_factory.mktemp("tokens")
    w = {"w1": weights(16, 24, seed=1), "w2": weights(24, 12, seed=2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["logits"], name="second"),
    ]
    paths = []
    for name, noise in (("net.onnx", 0.0), ("noisy.onnx", 0.1)):
        held = {k: (v + noise * rng(9).standard_normal(v.shape)).astype(np.float32) for k, v in w.items()}
        paths.append(save(model(nodes, [info("x", ["n", 5, 16])], [info("logits", ["n", 5, 12])], held), folder / name))
    return paths[0], paths[1]


def tokens(net: Path, path: Path, count: int = 220, *, labels: bool = True) -> Path:
    x = rng(3).standard_normal((count, 5, 16)).astype(np.float32)
    y = graphs.run(net, {"x": x})[0].argmax(axis=-1)
    np.savez(path, x=x, **({"y": np.where(rng(4).random(y.shape) < 0.2, 0, y)} if labels else {}))
    return path


def test_labels_decide_on_the_metric(nets: tuple[Path, Path], tmp_path: Path) -> None:
    net, noisy = nets
    data, bare = tokens(net, tmp_path / "d.npz"), tokens(net, tmp_path / "bare.npz", labels=False)
    with np.load(data) as arrays:
        answers, truth = (graphs.run(path, {"x": arrays["x"]})[0].argmax(-1) for path in nets), arrays["y"]
        first, second = answers
    score = trp_onnx.evaluate(noisy, data)
    assert score.metric.name == "top-1" and score.value == pytest.approx(100 * (second == truth).mean())
    both = trp_onnx.evaluate(noisy, data, against=net)
    assert both.lost == pytest.approx(100 * ((first == truth).mean() - (second == truth).mean()))
    apart = (first == truth).mean(axis=1) - (second == truth).mean(axis=1)
    assert both.standard_error == pytest.approx(100 * apart.std(ddof=1) / np.sqrt(220))
    agreed = trp_onnx.evaluate(noisy, bare, against=net, output_kinds={"logits": "tokens"})
    assert (agreed.metric.name, agreed.before.value) == ("agreement", 100)
    assert agreed.after.value == pytest.approx(100 * (first == second).mean())
    with pytest.raises(DataError, match="has no labels: give the original by --against"):
        trp_onnx.evaluate(noisy, bare)


def test_the_command_line_names_metrics_and_functions(own: None, nets: tuple[Path, Path], tmp_path: Path) -> None:
    net, noisy = nets
    data = tokens(net, tmp_path / "d.npz")
    right = trp_onnx.evaluate(noisy, data).value
    code, text = cli("evaluate", noisy, "--data", data)
    assert code == 0 and f"{right:.2f}% top-1 of 220 samples" in text
    for name in ("wrong_tokens", "Streamed"):
        code, text = cli("evaluate", noisy, "--data", data, "--metric", f"own_metrics:{name}", "--json", "-")
        found = json.loads(text)
        assert code == 0 and found["value"] == pytest.approx(100 - right)
        assert (found["metric"], found["unit"], found["higher_is_better"]) == (name, "%", False)
    code, text = cli("evaluate", noisy, "--data", data, "--metric", "own_metrics:gap", "--against", net)
    assert code == 0 and "gap 0 ->" in text
    for metric in ("cosine", "snr", "relative-error"):
        code, text = cli(
            "evaluate", noisy, "--data", data, "--metric", metric, "--against", net, "--json", tmp_path / "j.json"
        )
        found = json.loads((tmp_path / "j.json").read_text())
        assert code == 0 and f"{metric} " in text and found["samples"] == 220
        assert found["before"] == {"cosine": pytest.approx(1), "snr": None, "relative-error": 0}[metric]


@pytest.mark.parametrize(
    ("metric", "code", "message"),
    [
        (
            "accuracy",
            2,
            "--metric is top-1, top-5, miou, agreement, cosine, snr, relative-error or pkg.module:function",
        ),
        ("own_metrics:nothing", 1, "the metric 'own_metrics:nothing' cannot be imported"),
        ("nowhere:f", 1, "the metric 'nowhere:f' cannot be imported"),
        ("own_metrics:words", 2, "the metric 'words' returned str, not a number"),
        ("agreement", 2, "--metric agreement compares with the original's outputs: give it by --against"),
    ],
)
def test_metrics_that_cannot_be_used(
    own: None, nets: tuple[Path, Path], tmp_path: Path, metric: str, code: int, message: str
) -> None:
    data = tokens(nets[0], tmp_path / "d.npz")
    found, text = cli("evaluate", nets[0], "--data", data, "--metric", metric)
    assert found == code and message in text and "Traceback" not in text


def test_a_metric_that_wants_labels_says_so(nets: tuple[Path, Path], tmp_path: Path) -> None:
    bare = tokens(nets[0], tmp_path / "bare.npz", labels=False)
    code, text = cli("evaluate", nets[0], "--data", bare, "--metric", "top-5")
    assert code == 1 and "has no labels, which --metric top-5 wants" in text


def test_compress_goes_by_a_users_metric(
    own: None, nets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lower is better: what is lost is a rise, and the limit holds for the written file."""
    net, data, out = nets[0], tokens(nets[0], tmp_path / "d.npz", 400), tmp_path / "out.onnx"
    runs_on(monkeypatch, tmp_path)
    options = ("--data", data, "--align", 1, "--json", tmp_path / "r.json")
    metric = ("--metric", "own_metrics:wrong_tokens")
    code, text = cli("compress", net, "-o", out, "--max-drop", 60, *metric, "--test", data, *options)
    assert code == 0, text
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["limit"]["metric"] == report["score"]["metric"] == "wrong_tokens"
    assert 0 < report["limit"]["lost"] <= report["limit"]["allowed"] == 60
    assert report["score"]["lost"] == pytest.approx(report["score"]["after"] - report["score"]["before"])
    assert "wrong_tokens of 400" in text and "points" in text
    assert trp_onnx.evaluate(out, data, metric="own_metrics:Streamed").value == pytest.approx(report["score"]["after"])
    code, text = cli("compress", net, "-o", out, "--max-drop", 1, "--metric", "snr", *options)
    assert code == 2 and "--metric snr gives the original inf dB, of which nothing can be lost" in text


def test_a_report_says_what_outputs_were_taken_for(nets: tuple[Path, Path], tmp_path: Path) -> None:
    data = tokens(nets[0], tmp_path / "d.npz", labels=False)
    arguments = ("compress", nets[0], "-o", tmp_path / "out.onnx", "--macs", 0.6, "--align", 1, "--data", data)
    agreed = {}
    for said in (None, "logits:tokens"):
        more = () if said is None else ("--output-kind", said)
        code, text = cli(*arguments, *more, "--json", tmp_path / "r.json")
        assert code == 0, text
        report = json.loads((tmp_path / "r.json").read_text())
        (output,) = report["outputs"]
        assert output["taken_for"] == ("scores along axis 2 (as you said)" if said else "values along axis 2")
        agreed[said] = report["score"]["after"]
    found = trp_onnx.evaluate(tmp_path / "out.onnx", data, against=nets[0], output_kinds=["logits:scores:2"])
    assert agreed["logits:tokens"] != agreed[None] and 0 < found.after.value <= 100
    for said, message in (("z:scores", "the model has no output 'z'; it has logits"), ("logits:x", "KIND one of")):
        code, text = cli(*arguments, "--output-kind", said)
        assert code == 2 and message in text


def test_quantize_goes_by_a_metric(
    own: None, nets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_on(monkeypatch, tmp_path)
    data, out = tokens(nets[0], tmp_path / "d.npz"), tmp_path / "int8.onnx"
    made = trp_onnx.quantize(nets[0], out, data, test=data, metric="own_metrics:wrong_tokens", max_drop=40)
    assert made.layers == 2 and made.lost <= 40 and made.measure.endswith("points of wrong_tokens lost")
    code, text = cli("quantize", nets[0], "-o", out, "--data", data, "--metric", "own_metrics:wrong_tokens",
                     "--max-drop", 0, "--test", data, "--json", tmp_path / "q.json")  # fmt: skip
    found = json.loads((tmp_path / "q.json").read_text())
    assert code == 0 and found["lost"] == 0 and "wrong_tokens" in text
    assert [variant["score"]["metric"] for variant in found["variants"]] == ["wrong_tokens"] * 2
    code, text = cli("quantize", nets[0], "-o", out, "--data", data, "--metric", "snr")
    assert code == 2 and "of which nothing can be lost" in text
    bare = tokens(nets[0], tmp_path / "bare.npz", labels=False)
    made = trp_onnx.quantize(
        nets[0], out, bare, test=bare, network=trp_onnx.NetworkOptions(output_kinds={"logits": "tokens"}), max_drop=40
    )
    assert [v.score is not None and v.score.metric.name for v in made.variants] == ["agreement"] * 2


def test_maps_are_judged_by_pixels_and_classes(tmp_path: Path) -> None:
    w = {"w": weights(4, 3, 3, 3, seed=1)}
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    net = save(model([conv], [info("x", [1, 3, 8, 8])], [info("y", [1, 4, 8, 8])], w), tmp_path / "maps.onnx")
    x = rng(3).standard_normal((30, 3, 8, 8)).astype(np.float32)
    y = np.stack([graphs.run(net, {"x": x[i : i + 1]})[0].argmax(axis=1)[0] for i in range(30)])
    y[:, :2] = 255  # not labelled
    y[:10] = np.where(y[:10] == 255, 255, 0)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    right = trp_onnx.evaluate(net, tmp_path / "d.npz")
    wanted = np.stack([graphs.run(net, {"x": x[i : i + 1]})[0].argmax(axis=1)[0] for i in range(30)])
    assert right.value == pytest.approx(100 * (wanted == y)[y != 255].mean())
    assert 0 < trp_onnx.evaluate(net, tmp_path / "d.npz", metric="miou").value < right.value
    np.savez(tmp_path / "bare.npz", x=x)
    both = trp_onnx.evaluate(net, tmp_path / "bare.npz", metric="miou", against=net, output_kinds={"y": "maps"})
    assert both.after.value == both.before.value == 100


def detector(path: Path) -> Path:
    """Boxes in pixels and scores between 0 and 1 in one output, (N, 4 + 6, 36)."""
    w = {"w": weights(10, 3, 3, 3, seed=1)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "to"], ["flat"]),
        helper.make_node("Split", ["flat", "parts"], ["raw", "z"], axis=1),
        helper.make_node("Mul", ["raw", "pixels"], ["boxes"]),
        helper.make_node("Sigmoid", ["z"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["y"], axis=1),
    ]
    held = w | {"to": np.array([0, 10, 36]), "parts": np.array([4, 6]), "pixels": np.float32(640)}
    return save(model(nodes, [info("x", ["n", 3, 6, 6])], [info("y", ["n", 10, 36])], held), path)


def test_a_detector_is_judged_by_all_its_channels(tmp_path: Path) -> None:
    """Its scores are ruined, its boxes are not: agreement and relative error show it."""
    net, data = detector(tmp_path / "net.onnx"), tmp_path / "d.npz"
    ruined = onnx.load(net)
    changed = weights(10, 3, 3, 3, seed=1)
    changed[4:] = weights(6, 3, 3, 3, seed=5)
    next(t for t in ruined.graph.initializer if t.name == "w").CopyFrom(graphs.tensor("w", changed))
    save(ruined, tmp_path / "ruined.onnx")
    np.savez(data, x=rng(3).standard_normal((40, 3, 6, 6)).astype(np.float32))
    assert trp_onnx.evaluate(tmp_path / "ruined.onnx", data, against=net).after.value < 20
    error = trp_onnx.evaluate(tmp_path / "ruined.onnx", data, against=net, metric="relative-error")
    assert error.after.value > 100 and error.lost == pytest.approx(error.after.value)


def test_the_metrics_of_the_page_run(nets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    (tmp_path / "page_metrics.py").write_text(page.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    data = tokens(nets[0], tmp_path / "d.npz")
    wrong = trp_onnx.evaluate(nets[1], data, metric="page_metrics:wrong_tokens")
    assert wrong.value == pytest.approx(100 - trp_onnx.evaluate(nets[1], data).value) and not wrong.higher_is_better
    gap = trp_onnx.evaluate(nets[1], data, metric="page_metrics:largest_gap", against=nets[0])
    assert gap.before.value == 0 < gap.after.value == pytest.approx(gap.lost)
    assert all(f"`{name}`" in page for name in BUILT_IN) and all(name in page for name in NAMES)


def test_a_metric_wants_samples(nets: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--metric judges by samples: give --test or --data"):
        compress(nets[0], tmp_path / "out.onnx", macs=0.7, metric="top-1")


def test_what_does_not_run_is_one_sentence(nets: tuple[Path, Path], tmp_path: Path) -> None:
    data = tokens(nets[0], tmp_path / "d.npz")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    for pair in ((tmp_path / "bad.onnx", nets[0]), (nets[0], tmp_path / "bad.onnx")):
        code, text = cli("evaluate", pair[0], "--data", data, "--against", pair[1])
        assert code == 1 and "bad.onnx" in text and "Traceback" not in text
