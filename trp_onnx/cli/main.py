"""The command line: parses, calls the public API, prints. Heavy imports wait for the command."""

from __future__ import annotations

import errno
import functools
import io
import json
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trp_onnx._version import __version__
from trp_onnx.errors import TrpOnnxError
from trp_onnx.process import interrupts

if TYPE_CHECKING:
    from rich.console import Console

    from trp_onnx.data import Preprocessing
    from trp_onnx.training import TrainingOptions

F = TypeVar("F", bound=Callable[..., Any])

_INTERRUPTED = 130
_SAME_SIGNAL = 1.0  # seconds in which a signal is the one before: terminals and supervisors send several
_NO_ROOM = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
_SCHEMES = ("auto", "spatial", "spatial-mirror", "channel", "channel-mirror", "tucker2", "svd")
_FILE = click.Path(path_type=Path)


class _Shape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """`name:1,3,224,224`."""

    name = "NAME:D,D,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, separator, dims = str(value).rpartition(":")
        try:
            shape = tuple(int(d) for d in dims.split(","))
        except ValueError:
            shape = ()
        if not separator or not name or not shape or min(shape) < 1:
            self.fail(f"'{value}' is not of the form input:1,3,224,224", param, ctx)
        return name, shape


def _consoles() -> tuple[Console, Console]:
    """Results go to stdout, everything else to stderr."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140
    return Console(width=width), Console(stderr=True)


def _progress_console() -> Console:
    """Standard error, also while what libraries print there is turned away."""
    from rich.console import Console

    from trp_onnx.process.silence import undisturbed

    return Console(file=undisturbed(sys.stderr))


class _Lines(logging.Formatter):
    """Log lines for a terminal: names in them may be anything."""

    def format(self, record: logging.LogRecord) -> str:
        from trp_onnx.printable import printable

        return "\n".join(printable(line) for line in super().format(record).splitlines())


def _log_to_stderr(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """What `--verbose` does: steps of ours, and lines that libraries print."""
    if not wanted:
        return
    from trp_onnx.process.silence import undisturbed

    logger, handler = logging.getLogger("trp_onnx"), logging.StreamHandler(undisturbed(sys.stderr))
    handler.setFormatter(_Lines("%(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)

    def undo() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)

    ctx.call_on_close(undo)


class _Main(click.Group):
    """Commands whose results may go anywhere: a closed stream, a full disk, a terminal of few characters."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Every command has `--verbose`."""
        cmd.params.append(
            click.Option(
                ["-v", "--verbose"],
                is_flag=True,
                expose_value=False,
                callback=_log_to_stderr,
                help="Say on stderr what is done, and what libraries print.",
            )
        )
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # closed by the caller, who wants nothing of it
                setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  until the end
            elif isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except OSError as error:
            if error.filename is not None or error.errno not in _NO_ROOM:
                raise
            click.echo(f"trp-onnx: error: cannot print the result: {error.strerror}", err=True)
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for what is left in the buffer
            sys.exit(1)
        return result


class _Sectioned(click.Command):
    """A command whose help lists its options under headings, each by the first that `_SECTIONS` has."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*_SECTIONS, "Training")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                found = (heading for heading, names in _SECTIONS.items() if parameter.name in names)
                sections[next(found, "Training")].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


_SECTIONS = {
    "How far to go (at most one)": ("macs", "speedup", "max_drop", "energy", "vbmf"),
    "Result": ("out", "report_dir", "save_plan", "json_to", "quiet", "verbose", "help"),
    "Data": ("data", "test", "inputs", "input_shapes"),
    "How samples become inputs": (
        "preprocess", "layout", "scale", "mean", "std", "color", "resize", "crop", "label_offset",
    ),
    "Ranks and schemes": ("config", "scheme", "align", "plan_by", "asymmetric", "no_simplify"),
    "Device": ("latency_table", "threads"),
}  # fmt: skip
"""Headings of `compress --help` and the options under them; all others say how to train."""


@contextmanager
def _command() -> Iterator[None]:
    """Progress on stderr; errors as one sentence and an exit code."""
    from trp_onnx.progress import shown_on

    interrupted: float | None = None
    sent = signal.SIGINT.value

    def stop(number: int, _: object) -> None:
        nonlocal interrupted, sent
        now, sent = time.monotonic(), number
        if interrupted is None or now > interrupted + _SAME_SIGNAL:
            interrupted = now
            interrupts.heard()
            raise KeyboardInterrupt

    def unheard(event: Any) -> None:
        """An interrupt in a callback of the interpreter's (of an import, of a collection) is dropped there: again."""
        nonlocal interrupted
        if interrupted is not None and event.exc_type is KeyboardInterrupt:
            interrupted = None
            threading.Timer(0.05, os.kill, (os.getpid(), sent)).start()  # not here: it would be dropped as well
        else:
            hook(event)

    hook, sys.unraisablehook = sys.unraisablehook, unheard
    # A hang-up that nohup has the process ignore stays ignored.
    numbers = [n for n in interrupts.SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        with shown_on(_progress_console()):
            _guard_paths()
            yield
    except BaseException as error:
        # C extensions turn an interrupt at import into errors of their own: the flag tells.
        if interrupted is not None:
            what = "; ".join(getattr(error, "__notes__", ["nothing was written"]))
            click.echo(f"trp-onnx: interrupted; {what}", err=True)
            sys.exit(_INTERRUPTED)
        if not isinstance(error, TrpOnnxError):
            raise
        from trp_onnx.printable import message

        click.echo(f"trp-onnx: error: {message(str(error))}", err=True)
        sys.exit(error.exit_code)
    finally:
        sys.unraisablehook = hook
        interrupts.answered()
        if interrupted is None:  # else the process ends, and the same signal again does not end it otherwise
            for number, handler in previous.items():
                signal.signal(number, handler)


def _guard_paths() -> None:
    """Before the work: hold all that the command line writes against all that it reads; `paths` says what for."""
    from trp_onnx.files.paths import REPORT_FILES, default_output, guard

    context = click.get_current_context()
    given = dict(context.params)
    writes = [given.pop(name, None) for name in ("json_to", "save_plan", "out")]
    report, *others = (given.pop(name, None) for name in ("report_dir", "folder", "run"))
    if context.command.name == "compress":
        out = writes[-1] = writes[-1] or default_output(given["model"])
        writes += [f"{out}.data", f"{out}.1.data"]
    reads = [entry for value in given.values() for entry in (value if isinstance(value, tuple) else [value])]
    guard(
        writes=[path for path in writes if path != "-"],
        folders=[(report, REPORT_FILES), *((folder, ()) for folder in others)],
        reads=[path for path in reads if isinstance(path, Path)],
    )


def _show(tables: Sequence[Any], notes: Sequence[str]) -> None:
    from trp_onnx.printable import message

    console = _consoles()[0]
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(f"note: {message(note)}", style="yellow", highlight=False, markup=False)


def _write_json(document: dict[str, Any], target: str | None) -> None:
    if target is None:
        return
    text = json.dumps(document, indent=2) + "\n"
    if target == "-":
        click.echo(text, nl=False)
        return
    from trp_onnx.files.staging import write_text

    write_text(Path(target), text)


def _model_options(command: F) -> F:
    """Options of every command that reads a model's graph."""
    for option in (
        click.option("--no-simplify", is_flag=True, help="Do not run onnx-simplifier first."),
        click.option("--input-shape", "input_shapes", type=_Shape(), multiple=True,
                     help="Size of an input with dynamic dimensions; may be repeated."),
        click.option("--json", "json_to", metavar="FILE", help="Write the result as JSON; - for stdout."),
    ):  # fmt: skip
        command = option(command)
    return command


def _data_options(required: bool) -> Callable[[F], F]:
    """`--data` and how its samples become inputs."""

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

        data_help = (
            "Samples: an .npz (x, y), a folder of images with one subfolder a class, CIFAR-10's files, or "
            "pkg.module:function to train on. compress fits ranks and factors to them, without labels, or trains."
        )
        layouts, colors = click.Choice(["nchw", "nhwc"]), click.Choice(["rgb", "bgr"])
        options = (
            click.option("--data", type=_FILE, required=required, help=data_help),
            click.option("--preprocess", type=_FILE, metavar="TOML", help="Preprocessing as a file; flags go first."),
            click.option("--layout", type=layouts, help="Layout that the model takes."),
            click.option("--scale", metavar="X", help="Factor on the stored values, e.g. 1/255."),
            click.option("--mean", metavar="X[,X,X]", help="Subtracted after scaling."),
            click.option("--std", metavar="X[,X,X]", help="Divided by after that."),
            click.option("--color", type=colors, help="Colour order that the model takes."),
            click.option("--resize", type=int, metavar="PX", help="Resize the shorter side first."),
            click.option("--crop", type=int, metavar="PX", help="Cut out the centre."),
            click.option("--label-offset", type=int, metavar="N", help="Outputs before the first class."),
        )
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


class _Weights(click.ParamType[tuple[str, float]]):
    """`output=2.5`."""

    name = "OUTPUT=W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        output, separator, weight = str(value).rpartition("=")
        try:
            return output, float(weight) if separator else self.fail(f"'{value}' is not of the form output=1.0")
        except ValueError:
            self.fail(f"'{value}' is not of the form output=1.0", param, ctx)


def _training_options(command: Callable[..., Any]) -> Any:
    """`--train` and how; the command gets the options, or None without `--train`."""
    choice = click.Choice
    plain: tuple[tuple[str, Any, str], ...] = (
        ("epochs", int, "Passes over the training part, with projection (12); 0: train the factors alone."),
        ("batch", int, "Samples of a step (128)."),
        ("micro-batch", int, "Samples of a forward pass, and of BatchNormalization's statistics (64)."),
        ("rate", float, "Peak step size (0.05)."),
        ("schedule", choice(["cosine", "step", "constant"]), "How the step size falls (cosine)."),
        ("warmup", int, "Steps in which it rises (200)."),
        ("momentum", float, "Nesterov's momentum (0.9)."),
        ("weight-decay", float, "Not on biases and BatchNormalization (1e-4)."),
        ("clip", float, "Largest norm of the gradient."),
        ("strategy", choice(["ranks", "replan", "energy", "paper"]), "What decides on ranks; see the documentation."),
        ("every", int, "Steps between projections (20)."),
        ("nuclear", float, "Weight of the nuclear norm (0)."),
        ("labels", float, "Weight of the cross-entropy on labels (0.3; 0: train without labels)."),
        ("distill", float, "Weight of the distance to the original's outputs (0.7)."),
        ("temperature", float, "Temperature of the distilled outputs (4)."),
        ("distill-kind", choice(["auto", "kl", "mse"]), "Distance to the original's outputs."),
        ("validation", float, "Part of the data that is held out to choose the best epoch (0.1)."),
        ("finetune-epochs", int, "Passes in which the factors are trained after factorisation (0)."),
        ("finetune-rate", float, "Peak step size of those (0.005)."),
        ("workers", int, "Processes on this machine (1); more than one needs trp-onnx[mpi]."),
        ("seed", int, "Of the data's order and the augmentation (0)."),
    )

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        flags = {name: kwargs.pop(name) for name in (entry[0].replace("-", "_") for entry in plain)}
        flags["nuclear_every_step"] = kwargs.pop("nuclear_every_step") or None
        augment = kwargs.pop("augment")
        if augment is not None:
            flags["augment"] = tuple(name for name in augment.split(",") if name not in ("", "none"))
        flags["output_weights"] = dict(kwargs.pop("output_weights")) or None
        train, path = kwargs.pop("train"), kwargs.pop("training")

        def options() -> Any:
            if train:
                from trp_onnx.training import read_training

                return read_training(path, **flags)
            given = [name for name, value in (flags | {"training": path}).items() if value is not None]
            if given or kwargs["teacher"] or kwargs["run"] or kwargs["resume"]:
                from trp_onnx.errors import UsageError

                first = (given or [n for n in ("teacher", "run", "resume") if kwargs[n]])[0].replace("_", "-")
                raise UsageError(f"--{first} says how to train, but there is no --train")
            return None

        return command(*args, train=options, **kwargs)

    decorators = [
        click.option("--train", is_flag=True, help="Train on --data with projection first (Trained Rank Pruning)."),
        click.option("--training", type=_FILE, metavar="TOML", help="Training options as a file; flags go first."),
        *(click.option(f"--{name}", type=kind, help=text) for name, kind, text in plain),
        click.option("--nuclear-every-step", is_flag=True, help="Add the nuclear norm on every step, divided by m."),
        click.option("--augment", metavar="A,B", help="Any of crop, flip, resized, color; none (crop,flip)."),
        click.option("--output-weight", "output_weights", type=_Weights(), multiple=True,
                     help="Weight of an output in the loss; may be repeated."),
        click.option("--teacher", type=_FILE, metavar="ONNX", help="Learn from this model's outputs instead."),
        click.option("--run", type=_FILE, metavar="DIR", help="Keep checkpoints and curves there (OUT.trp-run)."),
        click.option("--resume", is_flag=True, help="Go on with the training that was interrupted."),
    ]  # fmt: skip
    for decorator in reversed(decorators):
        wrapped = decorator(wrapped)
    return wrapped


def _where_options(command: F) -> F:
    """Options of every command that times."""
    for option in (
        click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=120.0, show_default=True,
                     help="Seconds without a sign of life after which another runtime is given up."),
        click.option("--runtime", default="local", show_default=True,
                     help="Where: local, python:PATH, node, web (in Chromium) or ssh:HOST[:PYTHON]."),
        click.option("--provider", default="cpu", show_default=True,
                     help="cpu, cpu-im2col (its kernels on ARM and in .ort files), xnnpack, nnapi, coreml, qnn or "
                     "openvino."),
        click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Intra-op threads."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="trp-onnx")
def main() -> None:
    """Make a trained ONNX network smaller and faster by low rank, and prove it on the written file.

    Exit codes: 0 done, 1 cannot (one sentence says why), 2 wrong usage, 3 target out of reach.
    """


@main.command(cls=_Sectioned)
@click.argument("model", type=_FILE)
@click.option("-o", "--output", "out", type=_FILE, help="Where the compressed model goes (MODEL.lowrank.onnx).")
@click.option("--macs", type=float, metavar="R", help="Keep at most this part of the network's MACs.")
@click.option(
    "--energy", type=float, metavar="E", help="Discard at most this part of each layer's squared singular values."
)
@click.option("--speedup", type=float, metavar="S", help="Make it S times as fast, by measured times of its layers.")
@click.option(
    "--max-drop",
    type=float,
    metavar="P",
    help="As fast as can be at P points less accuracy, or agreement without labels, on samples held out of --data.",
)
@click.option("--vbmf", is_flag=True, help="Ranks by variational Bayesian matrix factorisation.")
@click.option("--config", type=_FILE, metavar="TOML", help="Per-layer map; goes before the rule above.")
@click.option("--scheme", type=click.Choice(_SCHEMES), default="auto", show_default=True, help="How layers are split.")
@click.option(
    "--align",
    default="auto",
    metavar="N|auto",
    show_default=True,
    help="Ranks are multiples of N channels; auto: the SIMD block of this CPU.",
)
@click.option(
    "--plan-by",
    type=click.Choice(["auto", "weights", "outputs"]),
    default="auto",
    show_default=True,
    help="What a budget makes least: layer errors, or what they do to the outputs, measured on --data.",
)
@click.option("--latency-table", type=_FILE, metavar="JSON", help="From trp-onnx profile; measured here otherwise.")
@click.option(
    "--asymmetric", is_flag=True, help="Fit each layer to make up for those compressed before it; needs --data."
)
@click.option("--threads", type=int, default=1, show_default=True, help="Intra-op threads the speed-up is meant for.")
@click.option("--inputs", type=_FILE, metavar="NPZ", help="Inputs to verify on, one array a name; generated otherwise.")
@_data_options(required=False)
@click.option("--test", type=_FILE, help="Samples to measure both files on, once, at the end.")
@_training_options
@_model_options
@click.option(
    "--report", "report_dir", type=_FILE, metavar="DIR", help="Write a page, report.json and plan.toml there."
)
@click.option("--save-plan", type=_FILE, metavar="TOML", help="Write the plan there; --config takes it back.")
@click.option("-q", "--quiet", is_flag=True, help="Print the summary, not every layer.")
def compress(
    model: Path,
    out: Path | None,
    preprocessing: Callable[[], Preprocessing],
    train: Callable[[], TrainingOptions | None],
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    no_simplify: bool,
    json_to: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Factorise the layers of MODEL, after training them for it with --train, and write the verified result to OUT.

    Without a rule (--macs, --speedup, ...) it takes the fastest plan that keeps the outputs: 99 % of the answers on
    held-out samples of --data, or without data a relative error of 2 % on generated inputs.
    """
    with _command():
        training = train()
        if training is not None:
            from trp_onnx.training.supervisor import stands_by

            if stands_by():
                return
        from trp_onnx.commands.compress import compress as run

        report = run(
            model,
            out,
            preprocessing=preprocessing(),
            train=training,
            input_shapes=dict(input_shapes),
            simplify=not no_simplify,
            command=shlex.join(["trp-onnx", *sys.argv[1:]]),
            **options,
        )
        _write_json(report.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import show_report

        show_report(_consoles()[0], report, layers=not quiet)


@main.command()
@click.argument("model", type=_FILE)
@click.option("--inputs", type=_FILE, metavar="NPZ", help="Inputs whose sizes count, one array a name.")
@_model_options
def inspect(
    model: Path,
    inputs: Path | None,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    no_simplify: bool,
    json_to: str | None,
) -> None:
    """List the layers of MODEL: MACs, spectrum, and what they could become."""
    with _command():
        from trp_onnx.commands.inspect import inspect as run

        result = run(model, input_shapes=dict(input_shapes), inputs=inputs, simplify=not no_simplify)
        _write_json(result.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import show_inspection

        show_inspection(_consoles()[0], result)


@main.command()
@click.argument("model", type=_FILE)
@_data_options(required=True)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N samples.")
@click.option("--json", "json_to", metavar="FILE", help="Write the result as JSON; - for stdout.")
def evaluate(
    model: Path, data: Path, preprocessing: Callable[[], Preprocessing], limit: int | None, json_to: str | None
) -> None:
    """Measure the top-1 accuracy of MODEL on labelled data."""
    with _command():
        from trp_onnx.evaluation.accuracy import evaluate as run

        accuracy = run(model, data, preprocessing=preprocessing(), limit=limit)
        document = {
            "model": str(model),
            "accuracy": accuracy.top1,
            "correct": accuracy.correct,
            "samples": accuracy.samples,
        }
        _write_json(document, json_to)
    if json_to != "-":
        click.echo(f"{accuracy.top1:.2%} top-1 ({accuracy.correct} of {accuracy.samples})")


@main.command()
@click.option("--json", "json_to", metavar="FILE", help="Write the result as JSON; - for stdout.")
def doctor(json_to: str | None) -> None:
    """Show versions, execution providers and what stands in the way."""
    with _command():
        from trp_onnx.commands.doctor import doctor as run

        found = run()
        _write_json(found.to_dict(), json_to)
    if json_to != "-":
        click.echo(f"Python {found.python} on {found.machine}")
        for name, version in found.versions.items():
            click.echo(f"  {name:14} {version or 'not installed'}")
        click.echo(f"execution providers  {', '.join(found.providers) or 'none'}")
        click.echo(f"--align auto         {found.simd_block} channels")
        click.echo(f"training             {found.training}")
        for problem in found.problems:
            click.echo(f"problem: {problem}")
        if not found.problems:
            click.echo("nothing stands in the way")
    if not found.providers or len(found.runtimes) > 1:
        sys.exit(1)


@main.command()
@click.argument("models", type=_FILE, nargs=-1, required=True)
@click.option("--rounds", type=click.IntRange(min=1), default=200, show_default=True, help="At most so many rounds.")
@_where_options
@click.option("--inputs", type=_FILE, metavar="NPZ", help="Inputs to run on, one array a name; generated otherwise.")
@click.option("--input-shape", "input_shapes", type=_Shape(), multiple=True,
              help="Size of an input with dynamic dimensions; may be repeated.")  # fmt: skip
@click.option("--json", "json_to", metavar="FILE", help="Write the result as JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print the models, not every layer.")
def bench(
    models: tuple[Path, ...],
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    json_to: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Time MODELS against the first one, fairly: interleaved, medians of ratios, the provider proved."""
    with _command():
        from trp_onnx.latency import bench as run

        result = run(models, input_shapes=dict(input_shapes), **options)
        _write_json(result.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import bench_tables

        _show(bench_tables(result)[: 1 if quiet else 2], result.notes)


@main.command()
@click.argument("model", type=_FILE)
@click.option("-o", "--output", "out", type=_FILE, required=True, help="Where the table goes.")
@click.option("--scheme", type=click.Choice(_SCHEMES), default="auto", show_default=True, help="Which schemes to time.")
@_where_options
@click.option("--no-simplify", is_flag=True, help="Do not run onnx-simplifier first, as in compress.")
@click.option("--inputs", type=_FILE, metavar="NPZ", help="Inputs to run on, one array a name; generated otherwise.")
@click.option("--input-shape", "input_shapes", type=_Shape(), multiple=True,
              help="Size of an input with dynamic dimensions; may be repeated.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Do not print the table.")
def profile(
    model: Path,
    out: Path,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    no_simplify: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Time the layers of MODEL, dense and factorised, so that compress --latency-table can plan for this machine."""
    with _command():
        from trp_onnx.latency import profile as run
        from trp_onnx.latency import save_table

        table = run(model, input_shapes=dict(input_shapes), simplify=not no_simplify, **options)
        save_table(table, out)
    if not quiet:
        from trp_onnx.report import latency_tables

        for part in latency_tables(table):
            _consoles()[0].print(part)


@main.command()
@click.argument("model", type=_FILE)
@click.option("-o", "--output", "folder", type=_FILE, metavar="DIR", required=True, help="Where everything goes.")
@click.option("--target", type=click.Choice(["any", "arm", "amd64"]), default="any", show_default=True,
              help="amd64 puts the blocked layout in: such a file loads on x86 only.")  # fmt: skip
@click.option("--style", type=click.Choice(["fixed", "runtime"]), default="fixed", show_default=True,
              help="runtime for NNAPI, CoreML and XNNPACK, which do not know the CPU's fusions.")  # fmt: skip
@click.option("--inputs", type=_FILE, metavar="NPZ", help="Inputs to compare on; generated otherwise.")
@click.option("--input-shape", "input_shapes", type=_Shape(), multiple=True,
              help="Size to fix an input with dynamic dimensions to, for good; may be repeated.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Do not print the tables.")
def export(
    model: Path, folder: Path, input_shapes: tuple[tuple[str, tuple[int, ...]], ...], quiet: bool, **options: Any
) -> None:
    """Turn MODEL into what an app ships: an .ort file, the operators of a reduced build, a manifest."""
    with _command():
        from trp_onnx.edge import export as run

        command = shlex.join(["trp-onnx", *sys.argv[1:]])
        result = run(model, folder, input_shapes=dict(input_shapes), command=command, **options)
    if not quiet:
        from trp_onnx.report import export_tables

        _show(export_tables(result), result.notes)


@main.command()
@click.argument("model", type=_FILE)
@click.option("-o", "--output", "out", type=_FILE, required=True, help="Where the int8 model goes.")
@_data_options(required=True)
@click.option("--max-drop", type=float, default=1.0, metavar="P", show_default=True,
              help="Points of accuracy to lose at most, by the float model's own probabilities; layers return to float "
              "until that holds.")  # fmt: skip
@click.option("--target", type=click.Choice(["any", "arm", "amd64"]), default="any", show_default=True,
              help="arm makes activations signed, as its kernels prefer.")  # fmt: skip
@click.option("--keep-ends", is_flag=True, help="Leave the first and the last layer in float.")
@click.option("--original", type=_FILE, metavar="ONNX", help="The dense model, quantised and measured beside.")
@click.option("--test", type=_FILE, help="Labelled samples to measure every file on, once, at the end.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of the timing.")
@click.option("--input-shape", "input_shapes", type=_Shape(), multiple=True,
              help="Size of an input with dynamic dimensions; may be repeated.")  # fmt: skip
@click.option("--json", "json_to", metavar="FILE", help="Write the result as JSON; - for stdout.")
def quantize(
    model: Path,
    out: Path,
    preprocessing: Callable[[], Preprocessing],
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    json_to: str | None,
    **options: Any,
) -> None:
    """Quantise MODEL to int8, layers that it hurts excepted, and measure float and int8 side by side."""
    with _command():
        from trp_onnx.quantization import quantize as run

        result = run(model, out, preprocessing=preprocessing(), input_shapes=dict(input_shapes), **options)
        _write_json(result.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import quantized_tables

        _show(quantized_tables(result), result.notes)


@main.command("setup-training")
@click.option("--wheel", type=_FILE, help="A wheel file, for machines without a network.")
@click.option("--cuda", is_flag=True, help="The CUDA build (299 MB).")
def setup_training(wheel: Path | None, cuda: bool) -> None:
    """Put the training runtime into a folder of its own in the user's cache."""
    with _command():
        from trp_onnx.training.isolated_runtime import setup_training as run

        folder = run(wheel, cuda=cuda)
    click.echo(f"the training runtime is in {folder}")


@main.command()
@click.option(
    "-o",
    "--output",
    "folder",
    type=_FILE,
    default=Path("trp-onnx-demo"),
    show_default=True,
    help="Folder for the demo's files.",
)
def demo(folder: Path) -> None:
    """Fit a small network to scikit-learn's digits, compress it with training and show what that gained and lost."""
    with _command():
        from trp_onnx.commands.demo import demo as run

        click.echo(
            "fitting a perceptron to scikit-learn's digits, then compressing it, training with projection", err=True
        )
        direct, report = run(folder)
    from trp_onnx.report import show_report

    show_report(_consoles()[0], report)
    if direct.accuracy_after is not None and report.accuracy_after is not None:
        click.echo(
            f"to {report.macs.remaining:.0%} of the MACs without training: {direct.accuracy_after.top1:.2%}; "
            f"with training: {report.accuracy_after.top1:.2%}"
        )
    click.echo(f"the files are in {folder}; look at one: trp-onnx inspect {folder / 'digits.onnx'}")
