"""Options that several commands share: the same names, types and groups everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trp_onnx.cli.flags import flags_of
from trp_onnx.cli.help import option

if TYPE_CHECKING:
    from trp_onnx.data import Preprocessing

GOAL, DATA, LAYERS = "How far to go", "Data", "Ranks and schemes"
JUDGED = "How outputs are judged"
SAMPLES, DEVICE, TRAINING, OUTPUT = "How samples become inputs", "Device", "Training", "Output"
"""Headings of the help."""

FILE = click.Path(path_type=Path)
TARGETS = click.Choice(["any", "arm", "amd64"])

Decorator = Callable[[Any], Any]


class Shape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """`name:1,3,224,224`."""

    name = "NAME:D,D,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name and the sizes."""
        name, separator, dims = str(value).rpartition(":")
        try:
            shape = tuple(int(d) for d in dims.split(","))
        except ValueError:
            shape = ()
        if not separator or not name or not shape or min(shape) < 1:
            self.fail(f"'{value}' is not of the form input:1,3,224,224", param, ctx)
        return name, shape


def every(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which the help lists them."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def shapes_option(
    what: str = "Size of an input with dynamic dimensions; may be repeated.", *, common: bool = False
) -> Decorator:
    """`--input-shape`; the command gets a dictionary."""
    return option(
        "--input-shape", "input_shapes", group=DATA, type=Shape(), multiple=True, common=common,
        callback=lambda ctx, param, value: dict(value), help=what,
    )  # fmt: skip


def inputs_option(what: str) -> Decorator:
    """`--inputs`."""
    return option(
        "--inputs",
        group=DATA,
        common=False,
        type=FILE,
        metavar="DATA",
        help=f"Samples (.npz, .npy, a folder, a function), {what}.",
    )


def no_simplify_option() -> Decorator:
    """`--no-simplify`."""
    return option("--no-simplify", group=LAYERS, common=False, is_flag=True, help="Do not run onnx-simplifier first.")


def json_option() -> Decorator:
    """`--json`."""
    return option(
        "--json", "json_to", group=OUTPUT, metavar="FILE", type=click.Path(allow_dash=True),
        help="Write the result as JSON; - for stdout.",
    )  # fmt: skip


def quiet_option(what: str) -> Decorator:
    """`-q`."""
    return option("-q", "--quiet", group=OUTPUT, is_flag=True, help=what)


def threads_option(what: str, *, common: bool = True) -> Decorator:
    """`--threads`."""
    return option(
        "--threads", group=DEVICE, type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
        common=common, help=f"Intra-op threads {what}.",
    )  # fmt: skip


def target_option(what: str, *, common: bool = True) -> Decorator:
    """`--target`."""
    return option("--target", group=DEVICE, type=TARGETS, default="any", show_default=True, common=common, help=what)


def scheme_option(what: str) -> Decorator:
    """`--scheme`."""
    from trp_onnx.job.search_space import SCHEME_CHOICES

    return option(
        "--scheme", group=LAYERS, type=click.Choice(SCHEME_CHOICES), default="auto", show_default=True, help=what
    )


def data_options(required: bool) -> Decorator:
    """`--data` and how its samples become inputs; the command gets a function that reads the latter."""

    def decorate(command: Callable[..., Any]) -> Any:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            names = ("layout", "scale", "mean", "std", "color", "resize", "crop", "label_offset")
            flags = {name: kwargs.pop(name) for name in names}
            path = kwargs.pop("preprocess")

            def preprocessing() -> Preprocessing:
                from trp_onnx.data import read_preprocessing

                return read_preprocessing(path, **flags)

            return command(*args, preprocessing=preprocessing, **kwargs)

        samples = functools.partial(option, group=SAMPLES, common=False)
        return every(
            option(
                "--data", group=DATA, type=FILE, required=required,
                help="Samples: .npz, .npy, a folder, pkg.module:function. An .npz has an array for each input (x for "
                "one, y for labels); a folder images, in one subfolder a class, or .npz files, or CIFAR-10's.",
            ),
            samples("--preprocess", type=FILE, metavar="TOML", help="Preprocessing as a file; flags go first."),
            samples("--layout", type=click.Choice(["nchw", "nhwc"]), help="Layout that the model takes."),
            samples("--scale", metavar="X", help="Factor on the stored values, e.g. 1/255."),
            samples("--mean", metavar="X[,X,X]", help="Subtracted after scaling."),
            samples("--std", metavar="X[,X,X]", help="Divided by after that."),
            samples("--color", type=click.Choice(["rgb", "bgr"]), help="Colour order that the model takes."),
            samples("--resize", type=int, metavar="PX", help="Resize the shorter side first."),
            samples("--crop", type=int, metavar="PX", help="Cut out the centre."),
            samples("--label-offset", type=int, metavar="N", help="Outputs before the first class."),
        )(wrapped)  # fmt: skip

    return decorate


def goal_options(command: Any) -> Any:
    """How far to go: the fields of `Goal`."""
    from trp_onnx.job import Goal

    names = ("macs", "speedup", "max_drop")
    return every(*flags_of(Goal, GOAL, names, without=("rules", "metric"), negatable=False))(command)


def external_data_option(command: Any) -> Any:
    """`--external-data`, a field of `NetworkOptions`."""
    from trp_onnx.job import NetworkOptions

    others = set(NetworkOptions.__dataclass_fields__) - {"external_data"}
    return every(*flags_of(NetworkOptions, OUTPUT, without=others))(command)


def search_options(command: Any) -> Any:
    """What layers may become: the fields of `SearchSpace`."""
    from trp_onnx.job import SearchSpace

    return every(*flags_of(SearchSpace, LAYERS, negatable=False))(command)


def metric_options(command: Any) -> Any:
    """`--metric` and `--output-kind`."""
    return every(
        option(
            "--metric", group=JUDGED, metavar="NAME",
            help="top-1, top-5, miou, agreement, cosine, snr, relative-error, or pkg.module:function. By default "
            "top-1 where labels name classes, else agreement.",
        ),
        option(
            "--output-kind", "output_kinds", group=JUDGED, common=False, multiple=True, metavar="NAME:KIND[:AXIS]",
            help="What an output is where that cannot be seen: scores, probabilities, maps, tokens, unit-vectors, "
            "boxes, items, discrete or values; may be repeated.",
        ),
    )(command)  # fmt: skip


def training_options(command: Callable[..., Any]) -> Any:
    """`--train` and how; the command gets a function that makes the training, or None without `--train`."""
    from trp_onnx.training.options import TrainingOptions

    fields = list(TrainingOptions.__dataclass_fields__)

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        flags = {name: kwargs.pop(name) for name in fields}
        flags["output_weights"] = dict(flags["output_weights"]) or None
        train, path = kwargs.pop("train"), kwargs.pop("training")

        kept = {name: kwargs.pop(name) for name in ("teacher", "run", "resume")}

        def options() -> Any:
            if train:
                from trp_onnx.job import Training
                from trp_onnx.training import read_training

                return Training(read_training(path, **flags), **kept)
            given = [name for name, value in (flags | {"training": path}).items() if value is not None]
            given += [name for name, value in kept.items() if value]
            if given:
                from trp_onnx.errors import UsageError

                raise UsageError(f"--{given[0].replace('_', '-')} says how to train, but there is no --train")
            return None

        return command(*args, train=options, **kwargs)

    how = functools.partial(option, group=TRAINING)
    return every(
        how("--train", is_flag=True, help="Train on --data with projection first (Trained Rank Pruning)."),
        *flags_of(TrainingOptions, TRAINING, common=("epochs",)),
        how("--training", common=False, type=FILE, metavar="TOML", help="Training options as a file; flags go first."),
        how("--teacher", common=False, type=FILE, metavar="ONNX", help="Learn from this model's outputs instead."),
        how("--run", common=False, type=FILE, metavar="DIR", help="Keep checkpoints and curves there (OUT.trp-run)."),
        how("--resume", is_flag=True, help="Go on with the training that was interrupted."),
    )(wrapped)


def where_options(command: Any) -> Any:
    """Options of every command that times."""
    return every(
        threads_option("of a run"),
        option(
            "--provider", group=DEVICE, default="cpu", show_default=True,
            help="cpu, cpu-im2col (its kernels on ARM and in .ort files), xnnpack, nnapi, coreml, qnn or openvino.",
        ),
        option(
            "--runtime", group=DEVICE, default="local", show_default=True,
            help="Where: local, python:PATH, node, web (in Chromium) or ssh:HOST[:PYTHON].",
        ),
        option(
            "--timeout", group=DEVICE, type=click.FloatRange(min=0, min_open=True), default=120.0, show_default=True,
            help="Seconds without a sign of life after which another runtime is given up.",
        ),
    )(command)  # fmt: skip
