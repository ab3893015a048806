"""Models in memory: each gets a file for as long as it is worked on, as does a result that stays in memory.

What runs a network in another process, maps its weights or compares two of them wants files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import onnx_ir as ir

from trp_onnx.errors import ModelError, TrpOnnxError
from trp_onnx.graph.model import check_weights, first_cause, write_model
from trp_onnx.schema import path_of

if TYPE_CHECKING:
    import onnx

ModelLike: TypeAlias = Union[str, PathLike[str], bytes, "onnx.ModelProto", ir.Model]
"""A file, the contents of one, or an open model."""

IN_MEMORY = "in memory"
"""What a report calls the place of a result without a file."""


def shown(model: ModelLike) -> str:
    """What a report calls a model."""
    return str(model) if isinstance(model, (str, PathLike)) else "a model in memory"


@contextmanager
def model_file(model: ModelLike, out: str | PathLike[str] | None = None) -> Iterator[tuple[Path, Path]]:
    """A model's file, and the place of a result: those that are given, else in a folder that goes when the block ends.

    Raises:
        ModelError: It is none of the kinds of model, or cannot be written.
    """
    place = None if out is None else path_of(out, "the output")
    if isinstance(model, (str, PathLike)) and place is not None:
        yield Path(model), place
        return
    with tempfile.TemporaryDirectory(prefix="trp-onnx-") as folder:
        source, place = Path(folder) / "model.onnx", place or Path(folder) / "result.onnx"
        if isinstance(model, (str, PathLike)):
            yield Path(model), place
            return
        try:
            yield _write(model, source), place
        except TrpOnnxError as error:  # its file is of no interest to anybody
            raise type(error)(str(error).replace(f"'{source}'", "the model in memory")) from error


def _write(model: ModelLike, path: Path) -> Path:
    import onnx

    try:
        if isinstance(model, bytes):
            path.write_bytes(model)
        elif isinstance(model, onnx.ModelProto):
            onnx.save(model, path)
        elif isinstance(model, ir.Model):
            check_weights(model)
            write_model(model, path)
        else:
            raise ModelError(
                f"a model is a path, bytes, an onnx.ModelProto or an onnx_ir.Model, not {type(model).__name__}"
            )
    except TrpOnnxError:
        raise
    except Exception as error:  # a tensor may be any code
        raise ModelError(f"the model in memory cannot be written to '{path.parent}': {first_cause(error)}") from error
    return path
