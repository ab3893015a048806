"""`trp-onnx export`: the folder that an app ships from.

    NAME.ort                                      the model, optimised for the target
    NAME.required_operators_and_types.config      what a reduced build of the runtime must hold
    manifest.json                                 what all of it is, where it came from, and that it does the same

The `.ort` is run beside its source before anything appears.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trp_onnx._version import __version__
from trp_onnx.data import Data
from trp_onnx.data.feeding import read_inputs
from trp_onnx.edge.advice import Advice, advise
from trp_onnx.edge.ort_format import STYLES, TARGETS, convert_to_ort, is_plain, names_of
from trp_onnx.edge.usability import Usability, check_usability
from trp_onnx.errors import ModelError, OutputError, UsageError, VerificationError
from trp_onnx.files.paths import cannot_write, guard
from trp_onnx.files.staging import hidden_beside, remove_dead
from trp_onnx.graph.in_memory import ModelLike, model_file
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import first_cause, open_model, write_model
from trp_onnx.graph.session import Arrays, feeds_for, relative_error
from trp_onnx.graph.sizes import real_inputs, sizes_from
from trp_onnx.job.network import Shapes
from trp_onnx.printable import printable
from trp_onnx.process.interrupts import held_back
from trp_onnx.progress import at_work, watch
from trp_onnx.rows import Headlined, in_bytes
from trp_onnx.runners import open_runner
from trp_onnx.schema import held, path_of, plain

FORMAT = "trp-onnx export 1"

MANIFEST = "manifest.json"

TOLERANCE = 1e-4
"""Largest relative error of an output, `|y - y'|_2 / |y|_2`, against the source; kernels differ by about 1e-6."""

HALF_TOLERANCE, INT8_TOLERANCE = 1e-2, 5e-2
"""The same in half precision, and in int8, where a float layer's last bit may turn a whole step."""

_STEPS = 64
"""Standard deviation of generated inputs in steps of an int8 scale, which has 255."""


@dataclass(frozen=True, repr=False)
class Export(Headlined):
    """What was exported.

    Attributes:
        folder: Where.
        manifest: What stands in its manifest.json.
        usability: What the mobile providers take.
        advice: What they ask of single layers.
        notes: What a reader should know.
    """

    folder: str
    manifest: dict[str, Any]
    usability: tuple[Usability, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]

    def headline(self) -> list[Sequence[str]]:
        """The files, how far outputs moved, and who may take the model."""
        worst = max(self.manifest["comparison"]["relative_errors"].values(), default=0.0)
        files = [(printable(file["file"]), in_bytes(file["bytes"])) for file in self.manifest["files"]]
        phones = ", ".join(f"{found.provider} {found.verdict}" for found in self.usability)
        compared = ("relative error", f"{worst:.1e}")
        return [(printable(self.folder), "size"), *files, compared, ("worth trying", phones or "not known")]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {"folder": self.folder} | self.manifest


def export(
    model: ModelLike,
    folder: str | PathLike[str],
    *,
    target: str = "any",
    style: str = "fixed",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Data | None = None,
    command: str | None = None,
) -> Export:
    """Convert a model to an `.ort` file, run it beside its source, and say what phones can do with it.

    Args:
        model: A file, its bytes, an `onnx.ModelProto` or an `onnx_ir.Model`, compressed or not; not modified.
        folder: Where everything goes; made if it does not exist, other files in it stay.
        target: "any", "arm" or "amd64" (x86's blocked layout put in; such a file loads nowhere else).
        style: "fixed" for the CPU provider, "runtime" for NNAPI, CoreML and XNNPACK (see `ort_format`).
        input_shapes: Sizes to fix dynamic inputs to, for good; those not named stay dynamic.
        inputs: What to compare on, whatever `open_data` takes; generated otherwise.
        command: How to repeat this, for the manifest.

    Raises:
        UsageError: An unknown target or style.
        ModelError: The model cannot be read, converted or run.
        DataError: The inputs cannot be read.
        OutputError: The folder cannot be written.
        VerificationError: The `.ort` gives other outputs than its source; nothing was written.
    """
    if target not in TARGETS:
        raise UsageError(f"--target is {', '.join(TARGETS)}, not '{target}'")
    if style not in STYLES:
        raise UsageError(f"--style is fixed or runtime, not '{style}'")
    input_shapes = held(input_shapes, Shapes | None, "input_shapes")
    place = path_of(folder, "the folder")
    with at_work() as notes, model_file(model) as (source, _):
        if source.suffix.lower() == ".ort":
            raise UsageError(f"'{source}' is an .ort file already: export takes the .onnx")
        return _export(source, place, target, style, input_shapes, inputs, command, notes)


def _export(
    source: Path,
    folder: Path,
    target: str,
    style: str,
    input_shapes: Mapping[str, Sequence[int]] | None,
    inputs: Data | None,
    command: str | None,
    notes: list[str],
) -> Export:
    opened = open_model(source)
    guard(folders=[(folder, (*names_of(source.stem, style), MANIFEST))], reads=[source, inputs])
    staging = _stage(folder)
    try:
        fixed = _fix_inputs(source, opened, input_shapes, staging)
        opened = open_model(fixed)
        feeds = _feeds(opened, input_shapes) if inputs is None else read_inputs(opened, inputs)
        if inputs is not None:
            input_shapes = sizes_from(opened, feeds, input_shapes)
        dynamic = [value.name for value in real_inputs(opened) if not _is_fixed(value)]
        if dynamic:
            notes.append(
                f"input '{dynamic[0]}' has dynamic sizes: NNAPI and CoreML then take nothing; --input-shape fixes them"
            )
        with watch("converting") as show:
            show(0, 3, "converting")
            ort_file, config = convert_to_ort(fixed, staging, target, style)
            show(1, 3, "comparing")
            tolerance, errors = _compare(fixed, ort_file, opened, feeds)
            show(2, 3, "asking what phones take")
            try:
                usability = tuple(check_usability(fixed, style))
            except Exception as error:  # the checker reads fewer models than the runtime
                usability = ()
                why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                notes.append(f"what phones take of it is not known: onnxruntime's checker fails ({why})")
        fused = [found.provider for found in usability if "com.microsoft:FusedConv" in found.missing]
        if style == "fixed" and fused:
            notes.append(
                f"the CPU's fusions are in this file, which {', '.join(fused)} do not know: for those export with "
                "--style runtime"
            )
        advice = tuple(advise(find_layers(opened, input_shapes)))
        shipped = [ort_file, config]
        manifest = _manifest(source, opened, shipped, target, style, tolerance, errors, command) | {
            "usability": plain(usability),
            "advice": plain(advice),
            "notes": notes,
        }
        text = staging / MANIFEST
        text.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _publish([*shipped, text], folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Export(str(folder), manifest, usability, advice, tuple(notes))


def _stage(folder: Path) -> Path:
    """A hidden folder on the disk that the result goes to."""
    absolute = folder.resolve()
    there = next(p for p in (absolute, *absolute.parents) if p.exists())
    remove_dead(absolute)  # from when the folder was not there
    staging = hidden_beside(there / (absolute.name or "export"))
    try:
        staging.mkdir(mode=0o700)
    except OSError as error:
        raise OutputError(f"cannot write to '{folder}': {error.strerror}") from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return staging


def _publish(files: Sequence[Path], folder: Path) -> None:
    with held_back():
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.replace(folder / file.name)


def _fix_inputs(source: Path, model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None, staging: Path) -> Path:
    """The model with inputs of fixed sizes in a file of its own; the source itself where nothing is to be changed."""
    if not input_shapes and is_plain(source):
        return source
    path = staging / f"{source.stem}.onnx"
    if write_model(model, path) and input_shapes:
        raise ModelError(f"'{source}' keeps its weights in another file: fix its sizes when it is exported to ONNX")
    if not input_shapes:
        return path
    import onnx
    from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_input_shape_fixed

    known = [value.name for value in real_inputs(model)]
    proto = onnx.load(path)
    for name, shape in input_shapes.items():
        if name not in known:
            raise ModelError(f"--input-shape names '{name}', but the model's inputs are {', '.join(map(repr, known))}")
        try:
            make_input_shape_fixed(proto.graph, name, list(shape))
        except ValueError as error:
            text = ",".join(map(str, shape))
            raise ModelError(f"--input-shape {name}:{text} does not fit: {str(error).splitlines()[0]}") from error
    try:
        fix_output_shapes(proto)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the sizes of '{source}' cannot be fixed: {first_cause(error)}") from error
    path.write_bytes(proto.SerializeToString())
    return path


def _is_fixed(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)


def _feeds(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None) -> Arrays:
    """Generated inputs, over the range of an int8 model: within one step of it everything is rounding."""
    feeds = feeds_for(model, input_shapes)
    for value in real_inputs(model):
        for node in value.consumers():
            scale = node.inputs[1].const_value if node.op_type == "QuantizeLinear" and node.inputs[1] else None
            if scale is not None and scale.size == 1:
                name = value.name or ""
                feeds[name] = np.asarray(feeds[name] * scale.numpy().item() * _STEPS, feeds[name].dtype)
    return feeds


def _compare(source: Path, ort_file: Path, model: ir.Model, feeds: Arrays) -> tuple[float, dict[str, float]]:
    """Relative error of each output of the `.ort` against its source."""
    half = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    tolerance = TOLERANCE
    if any(value.dtype in half for node in model.graph for value in node.outputs):
        tolerance = HALF_TOLERANCE
    if any(node.op_type == "QuantizeLinear" for node in model.graph):
        tolerance = INT8_TOLERANCE
    with open_runner() as runner:
        runner.prepare([source, ort_file], feeds)
        expected, actual = runner.outputs()
    errors = {name: relative_error(array, actual.get(name, np.empty(0))) for name, array in expected.items()}
    for name, error in errors.items():
        if not error <= tolerance:
            raise VerificationError(
                f"output '{name}' of the .ort file differs from its source by {error:.2g}, over the tolerance of "
                f"{tolerance:g}; nothing was written"
            )
    return tolerance, errors


def _manifest(
    source: Path,
    model: ir.Model,
    shipped: Sequence[Path],
    target: str,
    style: str,
    tolerance: float,
    errors: Mapping[str, float],
    command: str | None,
) -> dict[str, Any]:
    import onnx
    import onnxruntime as ort

    return {
        "format": FORMAT,
        "command": command,
        "versions": {"trp-onnx": __version__, "onnxruntime": ort.__version__, "onnx": onnx.__version__},
        "source": _file(source),
        "files": [_file(path) for path in shipped],
        "target": target,
        "style": style,
        "ir_version": model.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        "inputs": [_value(value) for value in real_inputs(model)],
        "outputs": [_value(value) for value in model.graph.outputs],
        "comparison": {"tolerance": tolerance, "relative_errors": dict(errors)},
    }


def _file(path: Path) -> dict[str, Any]:
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _value(value: ir.Value) -> dict[str, Any]:
    shape = None if value.shape is None else [size if isinstance(size, int) else str(size) for size in value.shape]
    dtype = None if value.dtype is None else np.dtype(value.dtype.numpy()).name
    return {"name": value.name, "type": dtype, "shape": shape}
