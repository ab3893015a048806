"""The commands: parse, call the public API, print. Heavy imports wait for the command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trp_onnx._version import __version__
from trp_onnx.cli.flags import filled
from trp_onnx.cli.help import option
from trp_onnx.cli.options import (
    DATA,
    DEVICE,
    FILE,
    GOAL,
    JUDGED,
    LAYERS,
    OUTPUT,
    TRAINING,
    data_options,
    external_data_option,
    goal_options,
    inputs_option,
    json_option,
    metric_options,
    no_simplify_option,
    quiet_option,
    scheme_option,
    search_options,
    shapes_option,
    target_option,
    threads_option,
    training_options,
    where_options,
)
from trp_onnx.cli.output import Commands, beside, show, write_json
from trp_onnx.cli.signals import answering

if TYPE_CHECKING:
    from trp_onnx.data import Preprocessing
    from trp_onnx.job import Training


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="trp-onnx")
def main() -> None:
    """Make a trained ONNX network smaller and faster by low rank, and prove it on the written file.

    Exit codes: 0 done, 1 cannot (one sentence says why), 2 wrong usage, 3 target out of reach, 130 interrupted.

    Shell completion: eval "$(_TRP_ONNX_COMPLETE=bash_source trp-onnx)" in ~/.bashrc; zsh_source and fish_source for
    zsh and fish.
    """


@main.command()
@click.argument("model", type=FILE)
@goal_options
@data_options(required=False)
@option("--test", group=DATA, type=FILE, help="Samples to measure both files on, once, at the end.")
@metric_options
@inputs_option("to verify on; generated otherwise")
@shapes_option()
@option("--config", group=LAYERS, common=False, type=FILE, metavar="TOML",
        help="Per-layer map; goes before the rule above.")  # fmt: skip
@search_options
@no_simplify_option()
@threads_option("that the speed-up is meant for", common=False)
@option("--latency-table", group=DEVICE, common=False, type=FILE, metavar="JSON",
        help="From trp-onnx profile; measured here otherwise.")  # fmt: skip
@option("--for-int8", "int8", group=DEVICE, common=False, is_flag=True,
        help="Plan by the times of int8: trp-onnx quantize comes afterwards.")  # fmt: skip
@target_option("What int8 is made for.", common=False)
@training_options
@option("--recover", group=TRAINING, type=float, metavar="MINUTES",
        help="Then learn from the original, without labels.")  # fmt: skip
@option("-o", "--output", "out", group=OUTPUT, type=FILE, help="Where the compressed model goes (MODEL.lowrank.onnx).")
@external_data_option
@option("--report", "report_dir", group=OUTPUT, type=FILE, metavar="DIR",
        help="Write a page, report.json and plan.toml there.")  # fmt: skip
@option(
    "--save-plan",
    group=OUTPUT,
    common=False,
    type=FILE,
    metavar="TOML",
    help="Write the plan there; --config takes it back.",
)
@json_option()
@quiet_option("Print the summary, not every layer.")
def compress(
    model: Path,
    out: Path | None,
    config: Path | None,
    preprocessing: Callable[[], Preprocessing],
    train: Callable[[], Training | None],
    no_simplify: bool,
    report_dir: Path | None,
    save_plan: Path | None,
    json_to: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Factorise the layers of MODEL and write the verified result to OUT.

    Without --macs, --speedup or --max-drop it takes the fastest plan that keeps the outputs.
    """
    with answering():
        training = train()
        if training is not None:
            from trp_onnx.training.supervisor import stands_by

            if stands_by():
                return
        from trp_onnx.commands.compress import compress as run
        from trp_onnx.files.paths import free_output
        from trp_onnx.job import Device, Goal, NetworkOptions, SearchSpace
        from trp_onnx.planning import read_rules
        from trp_onnx.report import check_page

        if report_dir is not None:
            check_page()
        out = out or free_output(model)
        result = run(
            model,
            out,
            filled(Goal, options, rules=() if config is None else read_rules(config)),
            search=filled(SearchSpace, options),
            device=filled(Device, options),
            training=training,
            network=filled(NetworkOptions, options, preprocessing=preprocessing(), simplify=not no_simplify),
            **options,
        )
        report = result.report
        with beside(out):
            if save_plan is not None:
                result.plan.save(save_plan)
            write_json(report.to_dict(), json_to)
            if report_dir is not None:
                report.save(report_dir, shlex.join(["trp-onnx", *sys.argv[1:]]))
    if json_to != "-":
        from trp_onnx.report import report_tables

        show(report_tables(report, layers=not quiet), report.notes, report.warnings)


@main.command()
@click.argument("model", type=FILE)
@data_options(required=False)
@inputs_option("whose sizes count")
@shapes_option()
@no_simplify_option()
@option("--latency-table", group=DEVICE, type=FILE, metavar="JSON",
        help="From trp-onnx profile; what is in the cache of this network otherwise.")  # fmt: skip
@json_option()
@quiet_option("Print the verdict and the notes, not the layers.")
def inspect(
    model: Path,
    preprocessing: Callable[[], Preprocessing],
    no_simplify: bool,
    json_to: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """List the layers of MODEL: MACs, spectrum, and what they could become; then say what is to be won, and how.

    With --data spectra are those of the layers' outputs.
    """
    with answering():
        from trp_onnx.commands.inspect import inspect as run

        result = run(model, preprocessing=preprocessing(), simplify=not no_simplify, **options)
        write_json(result.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import inspection_tables

        show(inspection_tables(result, layers=not quiet), result.notes)


@main.command()
@click.argument("model", type=FILE)
@data_options(required=True)
@option("--limit", group=DATA, type=click.IntRange(min=1), metavar="N", help="Only the first N samples.")
@metric_options
@option(
    "--against", group=JUDGED, type=FILE, metavar="ORIGINAL", help="Measure this model beside, on the same samples."
)
@json_option()
@quiet_option("Print the value alone, without its unit.")
def evaluate(
    model: Path, preprocessing: Callable[[], Preprocessing], json_to: str | None, quiet: bool, **options: Any
) -> None:
    """Measure MODEL on data: top-1 where labels name classes, else agreement with the original (--against)."""
    with answering():
        from trp_onnx.evaluation.evaluate import evaluate as run

        score = run(model, preprocessing=preprocessing(), **options)
        write_json({"model": str(model)} | score.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.printable import printable

        click.echo(f"{score.value:g}" if quiet else printable(str(score)))


@main.command()
@click.argument("model", type=FILE)
@option(
    "--original", group=DATA, type=FILE, metavar="ONNX", help="What MODEL was made of: outputs and time are compared."
)
@data_options(required=False)
@option("--metric", group=JUDGED, metavar="NAME", help="What is counted on --data; by default what the record names.")
@option(
    "--card", group=OUTPUT, type=FILE, metavar="MD", help="Write a model card there (Hugging Face's, with model-index)."
)
@json_option()
@quiet_option("Print what does not hold.")
def verify(
    model: Path,
    preprocessing: Callable[[], Preprocessing],
    card: Path | None,
    json_to: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure a MODEL that compress wrote again, and say what still holds of the record in it.

    Exit code 1 when something no longer holds.
    """
    with answering():
        from trp_onnx.commands.verify import verify as run
        from trp_onnx.files.staging import write_text

        result = run(model, preprocessing=preprocessing(), **options)
        if card is not None:
            write_text(card, result.card())
        write_json(result.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import verified_tables

        show(verified_tables(result, all_=not quiet), result.notes)
    if not result.holds:
        sys.exit(1)


@main.command()
@json_option()
@quiet_option("Print the problems alone.")
def doctor(json_to: str | None, quiet: bool) -> None:
    """Show versions, execution providers and what stands in the way."""
    with answering():
        from trp_onnx.commands.doctor import doctor as run

        found = run()
        write_json(found.to_dict(), json_to)
    if json_to != "-":
        if not quiet:
            click.echo(f"Python {found.python} on {found.machine}")
            for name, version in found.versions.items():
                click.echo(f"  {name:14} {version or 'not installed'}")
            click.echo(f"execution providers  {', '.join(found.providers) or 'none'}")
            click.echo(f"--align auto         {found.simd_block} channels")
            click.echo(f"training             {found.training}")
        for problem in found.problems:
            click.echo(f"problem: {problem}")
        if not (found.problems or quiet):
            click.echo("no problems found")
    if not found.providers or len(found.runtimes) > 1:
        sys.exit(1)


@main.command()
@click.argument("models", type=FILE, nargs=-1, required=True)
@inputs_option("to run on; generated otherwise")
@shapes_option()
@where_options
@option("--rounds", group=DEVICE, type=click.IntRange(min=1),
        help="At most so many rounds; 200, or as many as take some seconds, where not given.")  # fmt: skip
@json_option()
@quiet_option("Print the models, not every layer.")
def bench(models: tuple[Path, ...], json_to: str | None, quiet: bool, **options: Any) -> None:
    """Time MODELS against the first one, fairly: interleaved, medians of ratios, the provider proved."""
    with answering():
        from trp_onnx.latency import bench as run

        result = run(models, **options)
        write_json(result.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import bench_tables

        show(bench_tables(result, layers=not quiet), result.notes)


@main.command()
@click.argument("model", type=FILE)
@inputs_option("to run on; generated otherwise")
@shapes_option()
@scheme_option("Which schemes to time.")
@no_simplify_option()
@where_options
@option("--precision", group=DEVICE, type=click.Choice(["float", "int8", "int8-signed"]), default="float",
        show_default=True, help="int8 times what quantize makes of MODEL, int8-signed the same for arm.")  # fmt: skip
@option("-o", "--output", "out", group=OUTPUT, type=FILE, required=True, help="Where the table goes.")
@json_option()
@quiet_option("Print the notes, not the table.")
def profile(model: Path, out: Path, no_simplify: bool, json_to: str | None, quiet: bool, **options: Any) -> None:
    """Time the layers of MODEL, dense and factorised, so that compress --latency-table can plan for this machine."""
    with answering():
        from trp_onnx.latency import profile as run
        from trp_onnx.latency import save_table

        table = run(model, simplify=not no_simplify, **options)
        save_table(table, out)
        write_json(table.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import latency_tables

        show(() if quiet else latency_tables(table), table.notes)


@main.command()
@click.argument("model", type=FILE)
@inputs_option("to compare on; generated otherwise")
@shapes_option("Size to fix an input with dynamic dimensions to, for good; may be repeated.", common=True)
@target_option("amd64 puts the blocked layout in: such a file loads on x86 only.")
@option("--style", group=DEVICE, type=click.Choice(["fixed", "runtime"]), default="fixed", show_default=True,
        help="runtime for NNAPI, CoreML and XNNPACK, which do not know the CPU's fusions.")  # fmt: skip
@option("-o", "--output", "folder", group=OUTPUT, type=FILE, metavar="DIR", required=True,
        help="Where everything goes.")  # fmt: skip
@json_option()
@quiet_option("Print the notes, not the tables.")
def export(model: Path, folder: Path, json_to: str | None, quiet: bool, **options: Any) -> None:
    """Turn MODEL into what an app ships: an .ort file, the operators of a reduced build, a manifest."""
    with answering():
        from trp_onnx.edge import export as run

        result = run(model, folder, command=shlex.join(["trp-onnx", *sys.argv[1:]]), **options)
        write_json(result.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import export_tables

        show(() if quiet else export_tables(result), result.notes)


@main.command()
@click.argument("model", type=FILE)
@option("--max-drop", group=GOAL, type=float, default=1.0, metavar="P", show_default=True,
        help="Lose at most so much. By --metric in its unit, else points of accuracy by the float model's own "
        "probabilities; layers return to float until that holds.")  # fmt: skip
@data_options(required=True)
@option("--test", group=DATA, type=FILE, help="Samples to measure every file on, once, at the end.")
@metric_options
@shapes_option()
@option("--keep-ends", group=LAYERS, is_flag=True, help="Leave the first and the last layer in float.")
@option("--original", group=DATA, type=FILE, metavar="ONNX", help="The dense model, quantised and measured beside.")
@target_option("arm makes activations signed, as its kernels prefer.")
@threads_option("of the timing", common=False)
@option("-o", "--output", "out", group=OUTPUT, type=FILE, required=True, help="Where the int8 model goes.")
@json_option()
@quiet_option("Print the models, not every layer in float.")
def quantize(
    model: Path, out: Path, preprocessing: Callable[[], Preprocessing], json_to: str | None, quiet: bool, **options: Any
) -> None:
    """Quantise MODEL to int8, layers that it hurts excepted, and measure float and int8 side by side."""
    with answering():
        from trp_onnx.job import Device, NetworkOptions
        from trp_onnx.quantization import quantize as run

        network, device = filled(NetworkOptions, options, preprocessing=preprocessing()), filled(Device, options)
        result = run(model, out, network=network, device=device, **options)
        write_json(result.to_dict(), json_to)
    if json_to != "-":
        from trp_onnx.report import quantized_tables

        show(quantized_tables(result, layers=not quiet), result.notes)


@main.command("setup-training")
@option("--wheel", group=OUTPUT, type=FILE, help="A wheel file, for machines without a network.")
@option("--cuda", group=OUTPUT, is_flag=True, help="The CUDA build (299 MB).")
def setup_training(wheel: Path | None, cuda: bool) -> None:
    """Put the training runtime into a folder of its own in the user's cache."""
    with answering():
        from trp_onnx.training.isolated_runtime import setup_training as run

        folder = run(wheel, cuda=cuda)
    click.echo(f"the training runtime is in {folder}")


@main.command()
@option("-o", "--output", "folder", group=OUTPUT, type=FILE, default=Path("trp-onnx-demo"), show_default=True,
        help="Folder for the demo's files.")  # fmt: skip
@json_option()
@quiet_option("Print the summary, not every layer.")
def demo(folder: Path, json_to: str | None, quiet: bool) -> None:
    """Train a small convolutional network, make it 1.7 times as fast by low rank, and export it: a minute in all."""
    with answering():
        from trp_onnx.commands.demo import demo as run

        result = run(folder)
        report = result.result.report
        write_json(report.to_dict(), json_to)
    if json_to == "-":
        return
    from trp_onnx.report import report_tables

    show(report_tables(report, layers=not quiet), report.notes, report.warnings)
    click.echo(f"report    {result.page}\nfor apps  {result.ort}\nnext:")
    for command in result.next_commands():
        click.echo(f"  {command}")
