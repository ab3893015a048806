"""Data for training: splits, order, augmentation, CIFAR-10's files, functions."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.graphs import rng
from trp_onnx.data import Augmentation, Dataset, open_data
from trp_onnx.data.functions import is_function
from trp_onnx.errors import DataError
from trp_onnx.graph.inputs import InputSpec
from trp_onnx.training.batches import Batches, CallableBatches, prefetch

X = {"x": InputSpec("x", None, None, 0)}


def dataset(count: int = 50) -> Dataset:
    return open_data((rng().integers(0, 255, (count, 8, 8, 3), np.uint8), np.arange(count) % 10))


def batches(count: int = 50, batch: int = 8, micro_batch: int = 4, validation: float = 0.2) -> Batches:
    return Batches(
        dataset(count), batch=batch, micro_batch=micro_batch, validation=validation, seed=3,
        augmentation=Augmentation(("crop", "flip", "color")),
    )  # fmt: skip


def test_validation_is_apart_and_every_sample_is_somewhere() -> None:
    made = batches()
    assert not set(made.training) & set(made.held_out)
    assert sorted([*made.training, *made.held_out]) == list(range(50))
    assert made.steps == 5 and made.micro_batches == 2


def test_batches_depend_on_seed_epoch_and_step_alone() -> None:
    whole = list(batches().epoch(2, 0, 0, 1))
    later = next(iter(batches().epoch(2, 3, 0, 1)))
    for a, b in zip(whole[3], later, strict=True):
        np.testing.assert_array_equal(a.run.feeds["x"], b.run.feeds["x"])
        np.testing.assert_array_equal(a.labels, b.labels)
    other = next(iter(batches().epoch(1, 3, 0, 1)))
    assert not np.array_equal(other[0].run.feeds["x"], later[0].run.feeds["x"])


def test_workers_share_a_batch_without_changing_it() -> None:
    alone = next(iter(batches().epoch(0, 0, 0, 1)))
    shared = [next(iter(batches().epoch(0, 0, rank, 2)))[0] for rank in (0, 1)]
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(a.run.feeds["x"], b.run.feeds["x"])
    assert sum(micro.part for micro in alone) == 1.0


@pytest.mark.parametrize(("count", "batch", "validation"), [(50, 41, 0.2), (4, 2, 0.05), (3, 1, 0.9)])
def test_too_little_data_is_said(count: int, batch: int, validation: float) -> None:
    with pytest.raises(DataError, match=r"larger than the training part|both must hold some"):
        batches(count, batch, batch, validation)


@pytest.mark.parametrize(
    "names", [("crop",), ("flip",), ("resized",), ("color",), ("crop", "flip", "resized", "color")]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_augmentation_keeps_shape_and_type(names: tuple[str, ...], dtype: type) -> None:
    images = rng().integers(0, 255, (6, 16, 16, 3)).astype(dtype)
    augment = Augmentation(names)
    changed = augment(images, augment.draw(rng(1), 6), np.arange(6))
    assert changed.shape == images.shape and changed.dtype == images.dtype
    assert not np.array_equal(changed, images)
    assert changed.min() >= 0 and changed.max() <= 255


def test_crop_shifts_and_flip_mirrors() -> None:
    image = rng().integers(1, 255, (1, 16, 16, 3)).astype(np.uint8)
    choices = np.full((1, 10), 0.999)  # the last window, no flip
    shifted = Augmentation(("crop",))(image, choices, np.array([0]))
    np.testing.assert_array_equal(shifted[0, :-2, :-2], image[0, 2:, 2:])
    assert not shifted[0, -2:].any()
    flipped = Augmentation(("flip",))(image, np.zeros((1, 10)), np.array([0]))
    np.testing.assert_array_equal(flipped, image[:, :, ::-1])


def test_what_is_no_image_is_left_alone() -> None:
    x = rng().standard_normal((4, 9))
    assert Augmentation(("crop", "flip"))(x, np.zeros((4, 10)), np.arange(4)) is x


def cifar(folder: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    data = rng().integers(0, 255, (20, 3072)).astype(np.uint8)
    labels = [i % 10 for i in range(20)]
    for part in (0, 1):
        rows = slice(10 * part, 10 * part + 10)
        if kind == "binary":
            records = np.concatenate([np.array(labels[rows], np.uint8)[:, None], data[rows]], axis=1)
            (folder / f"data_batch_{part + 1}.bin").write_bytes(records.tobytes())
        else:
            document = {"batch_label": "batch", "labels": labels[rows], "data": data[rows], "filenames": ["a.png"] * 10}
            (folder / f"data_batch_{part + 1}").write_bytes(pickle.dumps(document, protocol=2 if kind == "py2" else 4))
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels)


@pytest.mark.parametrize("kind", ["binary", "py2", "py4"])
def test_cifars_own_files(tmp_path: Path, kind: str) -> None:
    images, labels = cifar(tmp_path, kind)
    opened = open_data(tmp_path)
    np.testing.assert_array_equal(opened.store.sample("x"), images)
    np.testing.assert_array_equal(opened.labels, labels)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": Bomb(), "labels": [1]}))
    with pytest.raises(DataError, match="no CIFAR-10 file"):
        open_data(tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02nonsense", b"x" * 3000])
@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_1"])
def test_damaged_cifar_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="no CIFAR-10 file"):
        open_data(tmp_path)


def two_batches(split: str, epoch: int):  # type: ignore[no-untyped-def]
    for i in range(2):
        yield rng(epoch + i).standard_normal((6, 5)), np.arange(6) % 3


def broken(split: str, epoch: int):  # type: ignore[no-untyped-def]
    raise RuntimeError("no such table")


def endless(split: str, epoch: int):  # type: ignore[no-untyped-def]
    yield np.full((6, 5), np.inf), np.arange(6) % 3


def empty(split: str, epoch: int):  # type: ignore[no-untyped-def]
    return iter(())


def test_a_function_yields_batches() -> None:
    made = CallableBatches("tests.test_training_data:two_batches", X, micro_batch=4)
    assert made.steps == 2 and made.micro_batches == 2
    first = next(iter(made.epoch(0, 0, 0, 1)))
    assert [micro.run.count for micro in first] == [3, 3]
    assert len(list(made.epoch(0, 1, 0, 1))) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.test_training_data:broken", "no such table"),
        ("tests.test_training_data:endless", "holds NaN or infinity"),
        ("tests.test_training_data:empty", "yields no batch"),
        ("tests.test_training_data:nothing", "cannot be imported"),
        ("no.such.module:f", "cannot be imported"),
    ],
)
def test_functions_that_fail(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CallableBatches(name, X, micro_batch=4)


def test_names_of_functions() -> None:
    assert is_function("pkg.module:function")
    assert not is_function("C:/data.npz") and not is_function("data.npz")


def test_prefetching_keeps_order_and_raises_what_was_raised() -> None:
    assert list(prefetch(iter(range(20)))) == list(range(20))

    def failing():  # type: ignore[no-untyped-def]
        yield 1
        raise DataError("gone")

    stream = prefetch(failing())
    assert next(stream) == 1
    with pytest.raises(DataError, match="gone"):
        next(stream)
