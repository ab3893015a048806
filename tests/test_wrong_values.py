"""Values from Python that make no sense: one sentence of ours, whatever they are, and nothing is changed or left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import trp_onnx
from tests.graphs import conv_net
from trp_onnx import DataError, Device, Goal, LayerRule, ModelError, NetworkOptions, OutputError, SearchSpace

from trp_onnx import Training, TrainingOptions, TrpOnnxError, UsageError  # isort: skip
from trp_onnx.job.search_space import SCHEME_CHOICES
from trp_onnx.lowrank.schemes import SCHEMES

X = np.random.default_rng(0).standard_normal((8, 3, 12, 12)).astype(np.float32)
HALF, EVERY_RANK = Goal(macs=0.7), SearchSpace(align=1)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_net(tmp_path_factory.mktemp("model") / "net.onnx")


def test_every_scheme_can_be_asked_for() -> None:
    assert ("auto", *SCHEMES) == SCHEME_CHOICES


def one_sentence(error: BaseException) -> bool:
    return "\n" not in str(error) and 0 < len(str(error)) < 500


@pytest.mark.parametrize(
    "make",
    [
        lambda: Goal(macs="0.5"),  # type: ignore[arg-type]
        lambda: Goal(speedup=10**400),
        lambda: Goal(energy=[0.1]),  # type: ignore[arg-type]
        lambda: Goal(max_drop=np.nan),
        lambda: Goal(max_drop=True, macs=object()),  # type: ignore[arg-type]
        lambda: Goal(rules=5),  # type: ignore[arg-type]
        lambda: Goal(rules=["conv2"]),  # type: ignore[list-item]
        lambda: Goal(rules="conv2"),  # type: ignore[arg-type]
        lambda: Device(threads="2"),  # type: ignore[arg-type]
        lambda: Device(threads=None),  # type: ignore[arg-type]
        lambda: SearchSpace(align="2"),  # type: ignore[arg-type]
        lambda: SearchSpace(asymmetric="no"),  # type: ignore[arg-type]
        lambda: NetworkOptions(input_shapes={"x": [1, -1]}),
        lambda: NetworkOptions(input_shapes=["x:1"]),  # type: ignore[arg-type]
        lambda: NetworkOptions(simplify=None),  # type: ignore[arg-type]
        lambda: NetworkOptions(external_data=["yes"]),  # type: ignore[arg-type]
        lambda: Training(TrainingOptions(), teacher=5),  # type: ignore[arg-type]
        lambda: LayerRule("conv2", rank=3),  # type: ignore[arg-type]
    ],
)
def test_types_hold_their_fields_to_what_they_take(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as raised:
        make()
    assert one_sentence(raised.value)


def test_numbers_of_numpy_are_numbers() -> None:
    assert Goal(macs=np.float32(0.5)) == Goal(macs=0.5)  # type: ignore[arg-type]
    assert Device(threads=np.int64(2)).threads == 2  # type: ignore[arg-type]
    assert NetworkOptions(input_shapes={"x": np.array([1, 3])}).input_shapes == {"x": [1, 3]}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"goal": 0.5}, "goal is a Goal, not float"),
        ({"goal": Goal}, "goal is a Goal, not the class Goal"),
        ({"goal": HALF, "search": {"align": 1}}, "search is a SearchSpace, not dict"),
        ({"goal": HALF, "network": 5}, "network is a NetworkOptions"),
        ({"goal": HALF, "training": 5}, "training is a Training"),
        ({"goal": HALF, "data": X, "training": Training(5)}, "options of the training"),  # type: ignore[arg-type]
        ({"goal": HALF, "device": Device(latency_table=5)}, "latency_table is a path"),  # type: ignore[arg-type]
        ({"goal": HALF, "data": X, "network": NetworkOptions(preprocessing={"scale": 2})}, "is a Preprocessing"),  # type: ignore[arg-type]
        ({"goal": HALF, "network": NetworkOptions(output_kinds=5)}, "--output-kind is NAME:KIND"),  # type: ignore[arg-type]
        ({"goal": HALF, "out": 5}, "the output is a path"),
    ],
)
def test_compress_says_what_it_takes(net: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trp_onnx.compress(net, **options)


def test_the_other_commands_say_what_they_take(net: Path) -> None:
    for call, said in (
        (lambda: trp_onnx.bench(net), "a list of models"),  # type: ignore[arg-type]
        (lambda: trp_onnx.bench([net], rounds="3"), "rounds takes a whole number"),  # type: ignore[arg-type]
        (lambda: trp_onnx.profile(net, threads=0), "threads takes a whole number from 1"),
        (lambda: trp_onnx.inspect(net, input_shapes={"x": 4}), "input_shapes"),  # type: ignore[dict-item]
        (lambda: trp_onnx.export(net, 5), "the folder is a path"),  # type: ignore[arg-type]
        (lambda: trp_onnx.quantize(net, data=X, max_drop="1"), "max_drop takes a number"),  # type: ignore[arg-type]
        (lambda: trp_onnx.evaluate(net, X, limit=0), "limit takes a whole number from 1"),
    ):
        with pytest.raises(UsageError, match=said):
            call()


@pytest.mark.parametrize("place", ["", ".", "/"])
def test_a_result_needs_a_name(net: Path, place: str) -> None:
    with pytest.raises(OutputError, match="it is a folder"):
        trp_onnx.compress(net, place, HALF, search=EVERY_RANK)


@pytest.mark.parametrize(
    "kind", ["logits:scores:²", "logits:scores:--1", "logits:scores:" + "9" * 5000, "logits", None]
)
def test_kinds_that_make_no_sense_are_refused(net: Path, kind: Any) -> None:
    with pytest.raises(UsageError, match="--output-kind is NAME:KIND") as raised:
        trp_onnx.evaluate(net, X, against=net, output_kinds=[kind])
    assert one_sentence(raised.value)


def test_one_kind_needs_no_list(net: Path) -> None:
    assert trp_onnx.evaluate(net, X, against=net, output_kinds="logits:scores").after.value == 100


class NoArray:
    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("no array")


class NoItems(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


def leaves() -> Iterator[Any]:
    yield X[0]
    raise SystemExit(3)


def fails() -> Iterator[Any]:
    yield X[0]
    raise ValueError("one line\nand another")


@pytest.mark.parametrize("data", [[{"x": NoArray()}], NoItems(x=X), [NoItems(x=X)], leaves(), fails(), b"bytes", 5])
def test_data_that_fails_is_an_error_of_the_data(net: Path, data: Any) -> None:
    with pytest.raises(DataError, match=r"the data given|samples come as") as raised:
        trp_onnx.evaluate(net, data, against=net)
    assert one_sentence(raised.value)


def test_labels_may_be_a_list(net: Path) -> None:
    assert trp_onnx.evaluate(net, (X, [0] * 8)) == trp_onnx.evaluate(net, (X, np.zeros(8, int)))  # type: ignore[arg-type]


class Streams:
    def update(self, outputs: object, labels: object) -> None: ...

    def result(self) -> float:
        return 1.0


class Wants(Streams):
    def __init__(self, argument: int) -> None: ...


class Locked(Streams):
    def __init__(self) -> None:
        self.lock = threading.Lock()


class NoUnit(Streams):
    @property
    def unit(self) -> str:
        raise RuntimeError("no unit")


def exits(outputs: object, labels: object) -> float:
    raise SystemExit(4)


def complains(outputs: object, labels: object) -> float:
    raise ValueError("one line\nand another")


@trp_onnx.metric(ruinous="much")  # type: ignore[arg-type]
def ruinous(outputs: object, labels: object) -> float:
    return 1.0


@pytest.mark.parametrize("metric", [Wants, Locked(), NoUnit(), exits, complains, ruinous])
def test_metrics_that_fail_are_wrong_options(net: Path, metric: Any) -> None:
    with pytest.raises(UsageError, match="the metric '") as raised:
        trp_onnx.evaluate(net, (X, np.zeros(8, int)), metric=metric)
    assert one_sentence(raised.value)


def test_metrics_are_started_by_functions(net: Path) -> None:
    with pytest.raises(UsageError, match="start is a function"):
        trp_onnx.Metric("mine", 5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is a Running, not None"):
        trp_onnx.evaluate(net, (X, np.zeros(8, int)), metric=trp_onnx.Metric("mine", lambda setting: None))  # type: ignore[arg-type, return-value]


# --- networks in memory whose weights are elsewhere -------------------------------------------------------------------


@pytest.fixture
def two_files(net: Path, tmp_path: Path) -> Path:
    model = onnx.load(net)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return tmp_path / "m.onnx"


def test_an_open_network_of_two_files_is_compressed_and_stays_as_it_is(two_files: Path) -> None:
    model = ir.load(two_files)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    first = trp_onnx.compress(model, two_files.with_name("out.onnx"), HALF, search=EVERY_RANK,
                              network=NetworkOptions(external_data="yes"))  # fmt: skip
    assert all(value.const_value is before[name] for name, value in model.graph.initializers.items())
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in before.values())
    again = trp_onnx.compress(first.model, goal=HALF, search=EVERY_RANK)
    assert again.report.macs.remaining <= 0.7


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_weights_that_went_meanwhile_are_missed(two_files: Path, how: str) -> None:
    made = trp_onnx.compress(two_files, two_files.with_name("out.onnx"), HALF, search=EVERY_RANK,
                             network=NetworkOptions(external_data="yes"))  # fmt: skip
    opened, weights = ir.load(two_files), [two_files.with_name("w.bin"), two_files.with_name("out.onnx.data")]
    for path in weights:
        path.unlink() if how == "gone" else path.write_bytes(b"few")
    before = sorted(path.name for path in two_files.parent.iterdir())
    with pytest.raises(ModelError, match=r"the weights of the model are no longer in '.*w\.bin'"):
        trp_onnx.compress(opened, goal=HALF, search=EVERY_RANK)
    with pytest.raises(ModelError, match=r"no longer in '.*out\.onnx\.data'"):
        made.save(two_files.with_name("copy.onnx"))
    assert sorted(path.name for path in two_files.parent.iterdir()) == before


def test_bytes_that_point_to_other_files_are_refused(two_files: Path) -> None:
    for model in (two_files.read_bytes(), onnx.load(two_files, load_external_data=False)):
        with pytest.raises(ModelError, match=r"^the model in memory keeps its weights in 'w\.bin', which is missing"):
            trp_onnx.compress(model, goal=HALF, search=EVERY_RANK)


def test_a_tensor_that_fails_is_an_error_of_the_model(net: Path) -> None:
    model = ir.load(net)

    def fail() -> ir.Tensor:
        raise RuntimeError("not today")

    value = model.graph.initializers["w1"]
    assert value.const_value is not None
    value.const_value = ir.LazyTensor(fail, value.const_value.dtype, value.const_value.shape, name="w1")
    with pytest.raises(ModelError, match="not today"):
        trp_onnx.compress(model, goal=HALF)


def test_results_are_saved_to_paths(net: Path, tmp_path: Path) -> None:
    made = trp_onnx.compress(net, goal=HALF, search=EVERY_RANK)
    with pytest.raises(UsageError, match="external_data is auto, yes or no"):
        made.save(tmp_path / "a.onnx", "maybe")  # type: ignore[arg-type]
    for save in (made.save, made.plan.save, made.report.save):
        with pytest.raises(TrpOnnxError, match="is a path, not int"):
            save(5)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
