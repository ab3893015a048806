"""Training with projection, end to end through the public API, on small nets and data made here."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import trp_onnx
from tests import easy
from tests.graphs import conv_net, info, model, network_of, rng, run, save, weights
from tests.processes import children, runs, until
from trp_onnx.errors import DataError, ModelError, TargetError, TrainingError, UsageError
from trp_onnx.training import TrainingOptions, isolated_runtime, read_training

CLASSES = 10
pytestmark = pytest.mark.usefixtures("training_runtime")
QUICK = {"epochs": 2, "batch": 32, "micro_batch": 16, "warmup": 3, "every": 4, "augment": ()}


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """conv1 -> BN -> relu -> conv2 -> BN -> relu -> pool -> fc."""
    folder = tmp_path_factory.mktemp("net")
    built = onnx.load(conv_net(folder / "plain.onnx"))
    for i in (1, 2):
        for name, array in {
            "scale": np.ones(16), "shift": np.zeros(16), "mean": np.zeros(16), "var": np.ones(16)
        }.items():  # fmt: skip
            built.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), f"bn{i}.{name}"))
        relu = next(node for node in built.graph.node if node.name == f"relu{i}")
        names = [f"bn{i}.{name}" for name in ("scale", "shift", "mean", "var")]
        place = list(built.graph.node).index(relu)
        built.graph.node.insert(
            place, helper.make_node("BatchNormalization", [f"c{i}", *names], [f"n{i}"], name=f"bn{i}")
        )
        relu.input[0] = f"n{i}"
    return save(built, folder / "net.onnx")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of noisy patterns, 12x12 in colour."""
    patterns = rng(7).standard_normal((CLASSES, 12, 12, 3))
    y = np.arange(320) % CLASSES
    x = patterns[y] + 0.8 * rng(8).standard_normal((320, 12, 12, 3))
    path = tmp_path_factory.mktemp("data") / "train.npz"
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


def options(**changes: object) -> TrainingOptions:
    return TrainingOptions(**(QUICK | changes))  # type: ignore[arg-type]


def compress(net: Path, out: Path, data: Path | str, **more: object) -> trp_onnx.Report:
    arguments: dict[str, object] = {"macs": 0.6, "scheme": "spatial", "align": 1, "train": options()} | more
    return easy.compress(net, out, data=data, **arguments)  # type: ignore[arg-type]


def test_training_to_a_speed(net: Path, data: Path, tmp_path: Path) -> None:
    """Ranks by the times of another machine, where only the second layer takes time; training keeps to them."""
    document = trp_onnx.profile(net).to_dict()
    for by in document["parts"].values():
        for knots in by.values():
            knots[:] = [([rank] * len(knots[0][0]), rank / 20) for rank in (1, 20) if knots]
    document |= {"shares": {"conv1": 0.0, "conv2": 0.9, "fc": 0.0}, "others": {}, "step": 1}
    document["target"] |= {"machine": "a phone"}
    (tmp_path / "table.json").write_text(json.dumps(document))
    report = compress(
        net, tmp_path / "out.onnx", data, macs=None, speedup=1.5, align="auto", latency_table=tmp_path / "table.json"
    )
    assert report.latency is not None and report.latency.predicted is not None
    assert report.latency.predicted >= 1.5
    found = {layer.name: layer for layer in report.layers}
    assert found["conv2"].rank is not None and found["conv2"].rank[0] <= 13
    assert found["conv2"].time_after is not None and found["conv2"].time_after < 0.6
    assert report.trained is not None and report.trained.correct == report.trained.written_correct


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.9, "predicted to make the network"),
        (0.05, "low rank has nothing to win in time on a phone"),
    ],
)
def test_what_there_is_to_win_is_said(net: Path, data: Path, tmp_path: Path, share: float, said: str) -> None:
    document = trp_onnx.profile(net).to_dict() | {"shares": {"conv1": 0.0, "conv2": share, "fc": 0.0}}
    document["others"] = {}
    document["target"] |= {"machine": "a phone"}
    (tmp_path / "table.json").write_text(json.dumps(document))
    report = compress(net, tmp_path / "out.onnx", data, latency_table=tmp_path / "table.json", train=options(epochs=1))
    assert any(said in note for note in report.notes)
    assert not any("no normalisation" in note for note in report.notes)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_weights(a: Path, b: Path) -> bool:
    return network_of(a) == network_of(b)


OWN = """
import numpy as np

def doubt(outputs, labels):
    z = outputs["logits"]
    return -float(np.mean(z[np.arange(len(labels)), labels] - np.log(np.exp(z).sum(axis=1))))

doubt.higher_is_better = False
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_metric_chooses_the_epoch(
    net: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """By name, for workers import it; of equals the later epoch."""
    (tmp_path / "own_doubt.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    report = compress(
        net, tmp_path / "out.onnx", data, metric="own_doubt:doubt", run=tmp_path / "r",
        train=options(epochs=3, workers=workers),
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    scores = [line["score"] for line in lines]
    assert [line["metric"] for line in lines] == ["own_doubt:doubt"] * 3 and max(scores) < 0
    assert report.trained is not None and report.trained.score == max(scores)
    assert report.trained.epoch == 1 + max(range(3), key=lambda i: (scores[i], i)) and report.trained.correct is None


def test_metrics_that_cannot_choose_an_epoch(net: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its workers take a metric by name"):
        compress(net, tmp_path / "out.onnx", data, metric=lambda outputs, labels: 1)
    with pytest.raises(UsageError, match="--metric cosine compares with the teacher: train with --distill above 0"):
        compress(net, tmp_path / "out.onnx", data, metric="cosine", train=options(distill=0.0))
    with pytest.raises(DataError, match="cannot be imported"):
        compress(net, tmp_path / "out.onnx", data, metric="nowhere:f")
    report = compress(
        net, tmp_path / "out.onnx", data, metric="cosine", train=options(epochs=1, distill=1.0, labels=0.0)
    )
    assert report.trained is not None and 0 < report.trained.score <= 1


def test_gradients_and_statistics_against_finite_differences() -> None:
    """Every rewrite included; the reference is onnx's own evaluator in float64."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gradient_check"], env=isolated_runtime.worker_environment(),
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert len(report) >= 3
    for name, errors in report.items():
        assert max(errors.values()) < 5e-3, (name, errors)
        assert np.median(list(errors.values())) < 1e-5, (name, errors)


def test_training_learns_and_factorising_loses_nothing(net: Path, data: Path, tmp_path: Path) -> None:
    report = compress(
        net, tmp_path / "out.onnx", data, test=data, train=options(epochs=6, distill=0.0), run=tmp_path / "r"
    )
    assert report.score is not None and report.trained is not None
    assert report.score.lost < -40
    assert report.trained.correct == report.trained.written_correct
    assert report.macs.ratio <= 0.6
    curve = losses(tmp_path / "r")
    assert curve[-1] < curve[0]
    ops = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert "BatchNormalization" not in ops and ops.count("Conv") > 2
    document = json.loads((tmp_path / "r" / "job.json").read_text())
    assert document["projection"]["targets"]
    assert json.loads(report.to_json())["training"]["epochs"] == 6


def test_labels_are_not_needed(net: Path, data: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.npz"
    np.savez(bare, x=np.load(data)["x"])
    easy.compress(net, tmp_path / "direct.onnx", scheme="spatial", align=1, macs=0.5)
    report = compress(net, tmp_path / "out.onnx", bare, macs=0.5, train=options(epochs=4))
    assert report.trained is not None and report.trained.correct is None
    x = {"x": np.load(data)["x"][:64].transpose(0, 3, 1, 2).copy()}
    expected, direct, trained = (run(p, x)[0] for p in (net, tmp_path / "direct.onnx", tmp_path / "out.onnx"))
    assert np.linalg.norm(trained - expected) < 0.6 * np.linalg.norm(direct - expected)
    with pytest.raises(DataError, match="has no labels"):
        compress(net, tmp_path / "no.onnx", bare, train=options(labels=1.0))


def test_labels_are_not_looked_at_when_told(net: Path, data: Path, tmp_path: Path) -> None:
    """The same weights with wrong labels: they take no part, in choosing the best epoch either."""
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, x=np.load(data)["x"], y=np.roll(np.load(data)["y"], 3))
    for name, path in (("a", data), ("b", wrong)):
        compress(net, tmp_path / f"{name}.onnx", path, train=options(labels=0.0))
    assert same_weights(tmp_path / "a.onnx", tmp_path / "b.onnx")


@pytest.mark.parametrize(
    ("how", "more"),
    [
        ("paper", {"energy": 0.1, "macs": 0.6}), ("energy", {"energy": 0.2, "macs": None}),
        ("replan", {"macs": 0.6}), ("ranks", {"macs": 0.6, "scheme": "tucker2"}),
    ],
)  # fmt: skip
def test_every_strategy_ends_at_the_rank_it_says(
    net: Path, data: Path, tmp_path: Path, how: str, more: dict[str, object]
) -> None:
    train = options(strategy=how, epochs=3, nuclear=1e-3, nuclear_every_step=how == "ranks")
    report = compress(net, tmp_path / "out.onnx", data, train=train, **more)
    assert report.trained is not None and report.trained.correct == report.trained.written_correct
    factorised = [decision for decision in report.layers if decision.scheme]
    assert factorised and all(decision.relative_error < 1e-5 for decision in factorised)
    if more["macs"]:
        assert report.macs.ratio <= 0.6


def test_the_map_excludes_layers(net: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "map.toml"
    config.write_text('[[layer]]\nname = "conv1"\nkeep = true\n\n[[layer]]\nname = "fc"\nkeep = true\n')
    report = compress(
        net, tmp_path / "out.onnx", data, config=config, energy=0.3, macs=None, train=options(strategy="paper", every=2)
    )
    assert {decision.name for decision in report.layers if decision.scheme} == {"conv2"}


def test_finetuning_trains_the_factors(net: Path, data: Path, tmp_path: Path) -> None:
    train = options(epochs=1, finetune_epochs=3, distill=0.0, finetune_rate=0.05)
    report = compress(net, tmp_path / "out.onnx", data, train=train, test=data, run=tmp_path / "r")
    assert report.trained is not None and report.trained.epochs == 3
    assert losses(tmp_path / "r" / "finetune")[-1] < losses(tmp_path / "r")[-1]
    only = compress(net, tmp_path / "only.onnx", data, train=options(epochs=0, finetune_epochs=2, distill=0.0))
    assert only.trained is not None and only.macs.ratio <= 0.6


def test_another_teacher(net: Path, data: Path, tmp_path: Path) -> None:
    teacher = conv_net(tmp_path / "teacher.onnx", channels=24)
    compress(net, tmp_path / "out.onnx", data, teacher=teacher, train=options(labels=0.0))
    compress(net, tmp_path / "own.onnx", data, train=options(labels=0.0))
    assert not same_weights(tmp_path / "out.onnx", tmp_path / "own.onnx")


def two_headed(path: Path) -> Path:
    w = {"w1": weights(20, 24, seed=1), "w2": weights(24, 16, seed=2), "w3": weights(24, 4, seed=3)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="hidden"),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["map"], name="map"),
        helper.make_node("MatMul", ["t", "w3"], ["score"], name="score"),
    ]
    outputs = [info("map", ["N", 5, 16]), info("score", ["N", 5, 4])]
    return save(model(nodes, [info("x", ["N", 5, 20])], outputs, w), path)


def test_several_outputs_that_are_no_classes(tmp_path: Path) -> None:
    net, data = two_headed(tmp_path / "net.onnx"), tmp_path / "x.npz"
    np.savez(data, x=rng().standard_normal((200, 5, 20)).astype(np.float32))
    train = options(epochs=15, output_weights={"score": 0.1})
    compress(net, tmp_path / "direct.onnx", data, train=None)
    compress(net, tmp_path / "out.onnx", data, train=train, run=tmp_path / "r")
    x = {"x": np.load(data)["x"][:50]}
    gap = {name: np.linalg.norm(run(tmp_path / f"{name}.onnx", x)[0] - run(net, x)[0]) for name in ("direct", "out")}
    assert gap["out"] < gap["direct"]
    with pytest.raises(UsageError, match="no output 'nothing'"):
        compress(net, tmp_path / "no.onnx", data, train=options(output_weights={"nothing": 1.0}))


def made_batches(split: str, epoch: int):  # type: ignore[no-untyped-def]
    patterns = rng(7).standard_normal((CLASSES, 3, 12, 12))
    for i in range(5 if split == "train" else 1):
        r = rng(100 * epoch + i)
        y = r.integers(0, CLASSES, 32)
        yield (patterns[y] + 0.8 * r.standard_normal((32, 3, 12, 12))).astype(np.float32), y


def test_data_from_a_function(net: Path, tmp_path: Path) -> None:
    report = compress(net, tmp_path / "out.onnx", "tests.test_training:made_batches")
    assert report.trained is not None and report.trained.samples == 32
    assert report.trained.correct == report.trained.written_correct


def test_a_budget_that_no_rank_reaches_is_said_before_the_training(net: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="nothing was trained"):
        compress(net, tmp_path / "out.onnx", data, macs=0.001, train=options(epochs=10**6, strategy="replan"))


def uneven_batches(split: str, epoch: int):  # type: ignore[no-untyped-def]
    yield from list(made_batches(split, epoch))[: 4 if epoch else 5]


def test_a_function_whose_epochs_differ_in_length(net: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="had 4 batches where the first had 5"):
        compress(net, tmp_path / "out.onnx", "tests.test_training:uneven_batches")


def test_a_fixed_batch_that_a_function_exceeds(tmp_path: Path) -> None:
    w = {"w1": weights(16, 3, 3, 3, seed=1), "wf": weights(16, CLASSES, seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "wf"], ["logits"], name="fc"),
    ]
    built = model(nodes, [info("x", [1, 3, 12, 12])], [info("logits", [1, CLASSES])], w, opset=13)
    net = save(built, tmp_path / "net.onnx")
    report = compress(net, tmp_path / "out.onnx", "tests.test_training:made_batches", macs=0.8)
    assert report.trained is not None and report.trained.correct == report.trained.written_correct


def test_a_fixed_batch_and_reshapes_of_it(data: Path, tmp_path: Path) -> None:
    w = {"w1": weights(16, 3, 3, 3, seed=1), "wf": weights(16 * 144, CLASSES, seed=2), "s": np.array([1, -1])}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "s"], ["f"]),
        helper.make_node("MatMul", ["f", "wf"], ["logits"], name="fc"),
    ]
    built = model(nodes, [info("x", [1, 3, 12, 12])], [info("logits", [1, CLASSES])], w, opset=13)
    report = compress(save(built, tmp_path / "net.onnx"), tmp_path / "out.onnx", data, macs=0.3)
    assert report.trained is not None
    written = onnx.load(tmp_path / "out.onnx")
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


@pytest.mark.parametrize(("name", "size"), [("resnet20_cifar10_bn", 32), ("squeezenet1.1_imagenet", 227)])
def test_real_exports_train_without_labels(real_models: Path, tmp_path: Path, name: str, size: int) -> None:
    """A few steps on noise: the loss goes down, and the best epoch is the one that is kept."""
    net, data = real_models / f"{name}.onnx", tmp_path / "x.npz"
    count = 320 if size == 32 else 40
    x = rng().standard_normal((count, size, size, 3)).astype(np.float32)
    np.savez(data, x=x)
    train = options(epochs=3, batch=count // 10, micro_batch=count // 10, rate=0.01, warmup=5, clip=5.0, every=5)
    report = compress(net, tmp_path / "out.onnx", data, macs=0.5, train=train, run=tmp_path / "r")
    assert report.macs.ratio <= 0.5
    curve = losses(tmp_path / "r")
    assert curve[-1] < curve[0]
    scores = [json.loads(line)["score"] for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert report.trained is not None and report.trained.score == max(scores)


# Resumption.


def command(net: Path, out: Path, data: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "trp_onnx", "compress", str(net), "-o", str(out), "--macs", "0.6", "--align", "1",
        "--train", "--data", str(data), "--epochs", "40", "--batch", "32", "--micro-batch", "16", "--augment", "crop",
        *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_kill_and_resume_ends_in_the_same_bits(net: Path, data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "training.toml"
    settings.write_text("checkpoint_seconds = 0.0\nwarmup = 10\n")  # one after every step
    more = ("--training", str(settings), "--strategy", "replan", "--nuclear", "1e-4", "--nuclear-every-step")
    subprocess.run(command(net, tmp_path / "whole.onnx", data, *more), check=True, capture_output=True)
    out, folder = tmp_path / "out.onnx", tmp_path / "out.onnx.trp-run"
    kills = 0
    for _ in range(3):
        began = subprocess.Popen(
            command(net, out, data, *more, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = steps_in(folder)
        until(lambda: began.poll() is not None or steps_in(folder) >= before + 37)  # noqa: B023
        left = children(began.pid)
        if began.poll() is None:
            began.send_signal(signal.SIGKILL)
            kills += 1
        began.wait()
        until(lambda: not any(map(runs, left)))  # noqa: B023  the worker notices that nobody is there any more
    assert kills >= 2
    assert not out.exists()
    subprocess.run(command(net, out, data, *more, "--resume"), check=True, capture_output=True)
    assert same_weights(out, tmp_path / "whole.onnx")
    assert not folder.exists()


def steps_in(folder: Path) -> int:
    try:
        with np.load(folder / "checkpoint.npz") as archive:
            return int(json.loads(archive["state"].tobytes())["step"])
    except (OSError, ValueError, KeyError):
        return 0


def test_a_run_is_not_begun_twice_nor_taken_for_another(net: Path, data: Path, tmp_path: Path) -> None:
    compress(net, tmp_path / "out.onnx", data, run=tmp_path / "r")
    (tmp_path / "r" / "result.npz").unlink()
    with pytest.raises(TrainingError, match="--resume"):
        compress(net, tmp_path / "out.onnx", data, run=tmp_path / "r")
    with pytest.raises(TrainingError, match="another model, data set or set of options"):
        compress(net, tmp_path / "out.onnx", data, run=tmp_path / "r", resume=True, train=options(rate=0.01))
    other = dict(np.load(data))
    np.savez(tmp_path / "other.npz", **other | {"x": other["x"][::-1]})
    kept = data.read_bytes()
    data.write_bytes((tmp_path / "other.npz").read_bytes())
    with pytest.raises(TrainingError, match="another model, data set or set of options"):
        compress(net, tmp_path / "out.onnx", data, run=tmp_path / "r", resume=True)
    data.write_bytes(kept)
    arrays = dict(np.load(tmp_path / "r" / "checkpoint.npz"))
    state = json.loads(arrays["state"].tobytes()) | {"format": 99}
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    np.savez(tmp_path / "r" / "checkpoint.npz", **arrays)
    with pytest.raises(TrainingError, match="format 99"):
        compress(net, tmp_path / "out.onnx", data, run=tmp_path / "r", resume=True)
    (tmp_path / "r" / "checkpoint.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(TrainingError, match="damaged"):
        compress(net, tmp_path / "out.onnx", data, run=tmp_path / "r", resume=True)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(net: Path, data: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    out, folder = tmp_path / "out.onnx", tmp_path / "out.onnx.trp-run"
    again = command(net, out, data, "--epochs", "5000", "--resume")
    began = subprocess.Popen(again, stderr=subprocess.DEVNULL)
    until(lambda: steps_in(folder) > 0)
    left = children(began.pid)
    began.kill()
    began.wait()
    until(lambda: not any(map(runs, left)))
    good = (folder / "checkpoint.npz").read_bytes()
    partial = folder / "checkpoint.npz.partial"
    partial.unlink(missing_ok=True)  # the kill may have met a checkpoint being written
    partial.symlink_to("/dev/full")
    done = subprocess.run(again, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr and "--resume" in done.stderr and "Traceback" not in done.stderr
    assert (folder / "checkpoint.npz").read_bytes() == good
    assert not out.exists()


def test_divergence_stops_with_a_sentence(net: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"diverged at step \d+.*--rate"):
        compress(net, tmp_path / "out.onnx", data, train=options(rate=1e6, warmup=0, epochs=8))
    assert not (tmp_path / "out.onnx").exists()


def test_a_worker_that_dies_is_noticed(net: Path, data: Path, tmp_path: Path) -> None:
    began = subprocess.Popen(
        command(net, tmp_path / "out.onnx", data, "--epochs", "5000"), stderr=subprocess.PIPE, text=True
    )
    until(lambda: steps_in_metrics(tmp_path / "out.onnx.trp-run") > 0)
    (worker,) = children(began.pid)
    os.kill(worker, signal.SIGKILL)
    _, said = began.communicate(timeout=900)
    assert began.returncode == 1
    assert "a training worker died" in said and "--resume" in said and "Traceback" not in said


def test_interrupting_keeps_the_run(net: Path, data: Path, tmp_path: Path) -> None:
    began = subprocess.Popen(
        command(net, tmp_path / "out.onnx", data, "--epochs", "5000"), stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "out.onnx.trp-run"
    until((folder / "checkpoint.npz").exists)
    (worker,) = children(began.pid)
    began.send_signal(signal.SIGINT)
    _, said = began.communicate(timeout=900)
    assert began.returncode == 130
    assert "--resume" in said
    assert (folder / "checkpoint.npz").exists() and not (tmp_path / "out.onnx").exists()
    until(lambda: not runs(worker))


def steps_in_metrics(folder: Path) -> int:
    try:
        return len((folder / "metrics.jsonl").read_text().splitlines())
    except OSError:
        return 0


# Several workers.


def mpi() -> str:
    pytest.importorskip("mpi4py")
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("there is no mpiexec")
    return launcher


@pytest.mark.slow
def test_two_workers_end_where_one_does(net: Path, data: Path, tmp_path: Path) -> None:
    mpi()
    for workers in (1, 2):
        compress(net, tmp_path / f"{workers}.onnx", data, train=options(workers=workers, nuclear=1e-4))
    x = {"x": np.load(data)["x"][:32].transpose(0, 3, 1, 2).copy()}
    one, two = (run(tmp_path / f"{workers}.onnx", x)[0] for workers in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_under_mpirun(net: Path, data: Path, tmp_path: Path) -> None:
    launcher = mpi()
    alone = command(net, tmp_path / "one.onnx", data, "--epochs", "2")
    subprocess.run(alone, check=True, capture_output=True)
    both = command(net, tmp_path / "two.onnx", data, "--epochs", "2")
    done = subprocess.run([launcher, "-n", "2", *both], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    x = {"x": np.load(data)["x"][:32].transpose(0, 3, 1, 2).copy()}
    one, two = (run(tmp_path / f"{name}.onnx", x)[0] for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run(net: Path, data: Path, tmp_path: Path) -> None:
    launcher = mpi()
    began = subprocess.Popen(
        [launcher, "-n", "2", *command(net, tmp_path / "out.onnx", data, "--epochs", "5000")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    folder = tmp_path / "out.onnx.trp-run"
    until(lambda: steps_in_metrics(folder) > 0)
    os.kill(workers_below(began.pid)[-1], signal.SIGKILL)
    said, _ = began.communicate(timeout=900)
    assert began.returncode != 0
    assert "Traceback" not in said
    assert steps_in(folder) > 0
    until(lambda: not workers_below(began.pid))


def workers_below(pid: int) -> list[int]:
    """Training workers among the descendants of a process."""
    found = []
    try:
        below = children(pid)
    except OSError:
        return []
    for child in below:
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"trp_onnx.training.worker" in words:
            found.append(child)
        found += workers_below(child)
    return found


# Bad input.


def test_labels_and_classes_that_do_not_fit(net: Path, data: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(data))
    for name, y in (("high", arrays["y"] + 5), ("low", arrays["y"] - 1)):
        np.savez(tmp_path / f"{name}.npz", x=arrays["x"], y=y)
        with pytest.raises(DataError, match=r"has label -?\d+, but the model has 10 classes"):
            compress(net, tmp_path / "out.onnx", tmp_path / f"{name}.npz")
    assert not list(tmp_path.glob("out.onnx*"))


def test_samples_that_do_not_fit(net: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((64, 8, 8, 3), np.float32), y=np.zeros(64, int))
    with pytest.raises(DataError, match=r"gives .x. the shape \(64,8,8,3\).*input is .x. \(N,3,12,12\)"):
        compress(net, tmp_path / "out.onnx", tmp_path / "x.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite(net: Path, tmp_path: Path, value: float) -> None:
    x = np.zeros((64, 12, 12, 3), np.float32)
    x[23, 4, 4, 1] = value
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(64, int))
    with pytest.raises(DataError, match="sample 23 of"):
        compress(net, tmp_path / "out.onnx", tmp_path / "x.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz"]


@pytest.mark.parametrize("changes", [{"batch": 400}, {"validation": 0.001}, {"validation": 0.999}])
def test_splits_that_hold_too_little(net: Path, data: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"larger than the training part|both must hold some"):
        compress(net, tmp_path / "out.onnx", data, train=options(**changes))
    assert not list(tmp_path.iterdir())


def test_a_model_without_float32_weights(data: Path, tmp_path: Path) -> None:
    half = onnx.load(conv_net(tmp_path / "net.onnx"))
    for tensor in half.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(ModelError, match=r"FLOAT16.*float32"):
        compress(save(half, tmp_path / "half.onnx"), tmp_path / "out.onnx", data)


def test_an_operator_without_a_gradient_is_named(data: Path, tmp_path: Path) -> None:
    built = onnx.load(conv_net(tmp_path / "net.onnx"))
    relu = next(node for node in built.graph.node if node.name == "relu2")
    relu.op_type, relu.name = "LRN", "normalise"
    relu.attribute.append(helper.make_attribute("size", 3))
    with pytest.raises(ModelError, match=r"no gradient for LRN .*normalise"):
        compress(save(built, tmp_path / "lrn.onnx"), tmp_path / "out.onnx", data)


def test_a_teacher_that_does_not_fit(net: Path, data: Path, tmp_path: Path) -> None:
    other = two_headed(tmp_path / "other.onnx")
    with pytest.raises((UsageError, ModelError, DataError)):
        compress(net, tmp_path / "out.onnx", data, teacher=other)


def test_ranks_that_never_reach_the_budget(net: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(trp_onnx.TargetError, match=r"came down to 1\.000 of the MACs"):
        compress(net, tmp_path / "out.onnx", data, energy=1e-6, macs=0.5, train=options(strategy="paper"))


def test_options_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('epochs = 3\nrate = 1\naugment = ["flip"]\noutput_weights = { a = 2.0 }\n')
    assert read_training(path, rate=0.5) == TrainingOptions(
        epochs=3, rate=0.5, augment=("flip",), output_weights={"a": 2.0}
    )
    for text, message in (
        ("epoch = 3", "unknown key 'epoch'"), ("epochs = 'three'", "epochs takes a whole number, not 'three'"),
        ("rate = -1.0", "rate takes a number above 0, not -1.0"), ("epochs = 0", "there are no epochs"),
        ("epochs", "is not TOML"),
        ("strategy = 'best'", "strategy is one of"), ("labels = 0.0\ndistill = 0.0", "nothing else to learn from"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_training(path)


def test_training_flags_need_train(net: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trp_onnx", "compress", str(net), "-o", str(tmp_path / "o.onnx"), "--macs", "0.5",
         "--epochs", "3"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "--epochs" in done.stderr and "Traceback" not in done.stderr


def test_setting_up_from_a_wheel_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRP_ONNX_TRAINING", str(tmp_path / "runtime"))
    with pytest.raises(TrainingError, match="does not exist"):
        isolated_runtime.setup_training(tmp_path / "no.whl")
    (tmp_path / "onnxruntime_training_cpu-1.19.2-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(TrainingError, match="cannot be installed"):
        isolated_runtime.setup_training(tmp_path / "onnxruntime_training_cpu-1.19.2-py3-none-any.whl")
    assert [path.suffix for path in tmp_path.iterdir()] == [".whl"]
    with pytest.raises(TrainingError, match="setup-training"):
        isolated_runtime.worker_environment()


def test_pythons_without_a_training_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated_runtime, "PYTHONS", ((3, 8),))
    with pytest.raises(TrainingError, match="training needs Python"):
        isolated_runtime.check_python()
