"""The command line: parses, calls the public API, prints. Heavy imports wait for the command."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from trp_onnx._version import __version__
from trp_onnx.errors import TrpOnnxError

if TYPE_CHECKING:
    from rich.console import Console

    from trp_onnx.data import Preprocessing

F = TypeVar("F", bound=Callable[..., Any])

_INTERRUPTED = 130
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

    width = None if sys.stdout.isatty() else 140
    return Console(width=width), Console(stderr=True)


@contextmanager
def _command() -> Iterator[None]:
    """Progress on stderr; errors as one sentence and an exit code."""
    from trp_onnx.progress import shown_on

    interrupted = False

    def stop(*_: object) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with shown_on(_consoles()[1]):
            yield
    except BaseException as error:
        # C extensions turn an interrupt at import into errors of their own: the flag tells.
        if interrupted:
            click.echo("trp-onnx: interrupted; nothing was written", err=True)
            sys.exit(_INTERRUPTED)
        if not isinstance(error, TrpOnnxError):
            raise
        click.echo(f"trp-onnx: error: {error}", err=True)
        sys.exit(error.exit_code)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _write_json(document: dict[str, Any], target: str | None) -> None:
    if target is None:
        return
    text = json.dumps(document, indent=2) + "\n"
    if target == "-":
        click.echo(text, nl=False)
        return
    from trp_onnx.model import write_text

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

        data_help = "Labelled samples: an .npz (x, y) or a folder of images, one subfolder a class."
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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="trp-onnx")
def main() -> None:
    """Make a trained ONNX network smaller and faster by low rank, and prove it on the written file.

    Exit codes: 0 done, 1 cannot (one sentence says why), 2 wrong usage, 3 target out of reach.
    """


@main.command()
@click.argument("model", type=_FILE)
@click.option("-o", "--output", "out", type=_FILE, required=True, help="Where the compressed model goes.")
@click.option("--macs", type=float, metavar="R", help="Keep at most this part of the network's MACs.")
@click.option(
    "--energy", type=float, metavar="E", help="Discard at most this part of each layer's squared singular values."
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
@click.option("--inputs", type=_FILE, metavar="NPZ", help="Inputs to verify on, one array a name; generated otherwise.")
@_data_options(required=False)
@_model_options
@click.option("--report", "report_dir", type=_FILE, metavar="DIR", help="Write report.json there.")
@click.option("-q", "--quiet", is_flag=True, help="Print the summary, not every layer.")
def compress(
    model: Path,
    out: Path,
    preprocessing: Callable[[], Preprocessing],
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    no_simplify: bool,
    json_to: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Factorise the layers of MODEL and write the verified result to OUT."""
    with _command():
        from trp_onnx.compression import compress as run

        report = run(
            model,
            out,
            preprocessing=preprocessing(),
            input_shapes=dict(input_shapes),
            simplify=not no_simplify,
            **options,
        )
        _write_json(report.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import show_report

        show_report(_consoles()[0], report, layers=not quiet)


@main.command()
@click.argument("model", type=_FILE)
@_model_options
def inspect(
    model: Path,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    no_simplify: bool,
    json_to: str | None,
) -> None:
    """List the layers of MODEL: MACs, spectrum, and what they could become."""
    with _command():
        from trp_onnx.inspection import inspect as run

        result = run(model, input_shapes=dict(input_shapes), simplify=not no_simplify)
        _write_json(result.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import inspection_table

        _consoles()[0].print(inspection_table(result))


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
        from trp_onnx.accuracy import evaluate as run

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
        from trp_onnx.diagnosis import doctor as run

        found = run()
        _write_json(found.to_dict(), json_to)
    if json_to != "-":
        click.echo(f"Python {found.python} on {found.machine}")
        for name, version in found.versions.items():
            click.echo(f"  {name:14} {version or 'not installed'}")
        click.echo(f"execution providers  {', '.join(found.providers) or 'none'}")
        click.echo(f"--align auto         {found.simd_block} channels")
        for problem in found.problems:
            click.echo(f"problem: {problem}")
        if not found.problems:
            click.echo("nothing stands in the way")
    if not found.providers or len(found.runtimes) > 1:
        sys.exit(1)


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
    """Train a small network on scikit-learn's digits, compress it and show what that gained and lost."""
    with _command():
        from trp_onnx.demonstration import demo as run

        click.echo("training a perceptron on scikit-learn's digits, then compressing it", err=True)
        report = run(folder)
    from trp_onnx.report import show_report

    show_report(_consoles()[0], report)
    click.echo(f"the files are in {folder}; look at one: trp-onnx inspect {folder / 'digits.onnx'}")
