"""Open and save models: weights stay on disk until somebody asks, and what is written appears whole.

A result is built in a folder of its own beside the target (`Staging`) and moved into place by rename once
it has been verified; whatever ends the work before that, the folder is removed and nothing has changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trp_onnx import soundness
from trp_onnx.errors import ModelError, OutputError, UsageError
from trp_onnx.memory import check_room
from trp_onnx.progress import note
from trp_onnx.sizes import free_sizes

if TYPE_CHECKING:
    import onnx

EXTERNAL_FROM = 1536 * 2**20
"""Bytes of weights from which they go into a file of their own; protobuf ends at 2 GiB."""


def open_model(path: Path) -> ir.Model:
    """Open an ONNX file; external data is mapped when it is used, not read.

    Raises:
        ModelError: Not a file, not ONNX, truncated, or external data that is missing, too short or
            outside the model's folder.
    """
    proto = _parse(path)
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"'{path}' is not an ONNX model: it holds no graph")
    try:
        for told in soundness.check(proto):
            note(told)
        model = ir.from_proto(proto)
    except ModelError as error:
        raise ModelError(f"'{path}' is not a valid ONNX model: {error}") from error
    except Exception as error:  # onnx_ir wraps whatever a malformed graph trips over
        cause = error.__cause__ or error
        raise ModelError(f"'{path}' is not a valid ONNX model: {_first_line(cause)}") from error
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = path.resolve().parent
    _check_external_data(path, model)
    _one_name_for_the_standard_domain(model)
    free_sizes(model)
    try:
        model.graph.sort()  # onnxruntime takes nodes in any order, and quantisers write them so
    except ValueError as error:
        raise ModelError(f"'{path}' is not a valid ONNX model: its nodes depend on one another in a circle") from error
    return model


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if not path.exists():
            raise ModelError(f"'{path}' does not exist")
        if not path.is_file():  # a pipe would be waited for
            raise ModelError(f"'{path}' is not a file")
        if path.stat().st_size >= 2**31:
            raise ModelError(
                f"'{path}' is not an ONNX file: protobuf ends at 2 GB, weights beyond it are kept beside it"
            )
        check_room(2 * path.stat().st_size, f"reading '{path}'")
        proto: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
        return proto
    except DecodeError as error:
        raise ModelError(
            f"'{path}' is not an ONNX file, or it is truncated, or nested deeper than protobuf reads"
        ) from error
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise ModelError(f"'{path}' cannot be read: {error}") from error


def _one_name_for_the_standard_domain(model: ir.Model) -> None:
    """ONNX calls it "" and "ai.onnx"; from here on it is ""."""
    imports = [model.opset_imports, *(function.opset_imports for function in model.functions.values())]
    for versions in imports:
        if "ai.onnx" in versions:
            versions[""] = versions.pop("ai.onnx")
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if node.domain == "ai.onnx":
                node.domain = ""


def _check_external_data(path: Path, model: ir.Model) -> None:
    folder = path.resolve().parent
    sizes: dict[str, int] = {}
    for tensor in tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = os.fspath(tensor.location)
        target = (folder / location).resolve()
        if Path(location).is_absolute() or not target.is_relative_to(folder):
            raise ModelError(
                f"'{path}' is refused: tensor '{tensor.name}' points to '{location}', outside the model's folder"
            )
        if location not in sizes:
            if not target.is_file():
                raise ModelError(
                    f"'{path}' keeps its weights in '{location}', which is missing: put that file beside it"
                )
            sizes[location] = target.stat().st_size
        if (tensor.offset or 0) + tensor.nbytes > sizes[location]:
            raise ModelError(
                f"'{location}', the weights of '{path}', is too short for tensor '{tensor.name}': it is truncated"
            )


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor that a model stores: initializers and Constant nodes, subgraphs and functions too."""
    graphs: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for graph in graphs:
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.as_tensor()


def count_parameters(model: ir.Model) -> int:
    """Entries of all float tensors that a model stores."""
    return sum(tensor.size for tensor in tensors(model) if tensor.dtype.is_floating_point())


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all tensors that a model stores."""
    return sum(tensor.nbytes for tensor in tensors(model))


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """A copy in one piece, external weights read in; for models that fit in memory twice."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return ir.to_proto(copy)


def has_external_data(model: ir.Model) -> bool:
    """Whether any tensor lives outside the ONNX file."""
    return any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors(model))


def file_bytes(path: Path) -> int:
    """Size of an ONNX file and the external data that belongs to it."""
    locations = {
        os.fspath(tensor.location) for tensor in tensors(open_model(path)) if isinstance(tensor, ir.ExternalTensor)
    }
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in locations)


class Staging:
    """A hidden folder beside the target, in which the result is built; a context manager.

        with Staging(out, source) as staging:
            staging.save(model)     # staging.path now holds the model, under its final name
            ...                     # verify it
            staging.publish()       # rename into place

    Attributes:
        path: The model inside the folder.
    """

    def __init__(self, out: Path, source: Path, model: ir.Model) -> None:
        """Choose the folder; entering makes it.

        Args:
            out: Where the result shall be.
            source: The input file, which must stay untouched.
            model: The opened input; its external files must stay untouched too.

        Raises:
            UsageError: `out` is the input, or its data file would be one that the input uses.
            OutputError: The folder of `out` does not exist or cannot be written to; entering raises it as well.
        """
        self.out = out
        data = out.with_name(out.name + ".data")
        if out.exists() and out.samefile(source):
            raise UsageError(f"the output '{out}' is the input: choose another name, inputs are never modified")
        for tensor in tensors(model):
            for target in (data, out):
                if isinstance(tensor, ir.ExternalTensor) and target.exists() and target.samefile(tensor.path):
                    raise UsageError(f"the output's data file '{target}' belongs to the input: choose another name")
        check_target(out)
        self.folder = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
        self.path = self.folder / out.name
        self.external = has_external_data(model)
        self._spool = self.folder / f"factors-of-{out.name}"

    def keep(self, name: str, array: np.ndarray, dtype: ir.DataType) -> ir.TensorProtocol:
        """A tensor for the new model: in memory, or on disk where the input keeps its weights there.

        Raises:
            OutputError: The disk is full.
        """
        array = np.ascontiguousarray(array, dtype=dtype.numpy())
        if not self.external:
            return ir.tensor(array, name=name)
        try:
            with self._spool.open("ab") as file:
                offset = file.tell()
                file.write(array.tobytes())
        except OSError as error:
            raise cannot_write(self.out, error) from error
        return ir.ExternalTensor(
            self._spool.name, offset, array.nbytes, dtype,
            shape=ir.Shape(array.shape), name=name, base_dir=self.folder,
        )  # fmt: skip

    def save(self, model: ir.Model) -> None:
        """Write the model into the folder; weights in `<name>.data` where the input had such a file.

        Raises:
            OutputError: The disk is full, or any other failure to write.
        """
        external = self.external or weight_bytes(model) > EXTERNAL_FROM
        try:
            ir.save(model, self.path, format="protobuf", external_data=f"{self.out.name}.data" if external else None)
            self._spool.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.out, error) from error

    def publish(self) -> None:
        """Move the result into place.

        Raises:
            OutputError: A rename failed.
        """
        data = self.path.with_name(self.path.name + ".data")
        try:
            if data.exists():
                data.replace(self.out.with_name(data.name))
            self.path.replace(self.out)
        except OSError as error:
            raise cannot_write(self.out, error) from error

    def __enter__(self) -> Staging:
        # Its name is known before it is there: whenever an interrupt comes, it is removed.
        try:
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            raise OutputError(f"cannot write '{self.out}': {error.strerror}") from error
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def check_target(path: Path) -> None:
    """Refuse a place that cannot be written to, before there is anything to write.

    Raises:
        OutputError: It is a folder, or the folder it is in does not exist or is closed.
    """
    try:
        if path.is_dir() or not path.name:
            raise OutputError(f"cannot write '{path}': it is a folder")
        if path.exists() and not path.is_file():
            raise OutputError(f"cannot write '{path}': it is no regular file")
        if not path.parent.is_dir():
            raise OutputError(f"cannot write '{path}': the folder '{path.parent}' does not exist")
    except OSError as error:  # a name that is too long
        raise cannot_write(path, error) from error
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write '{path}': Permission denied")


def check_distinct(outputs: Sequence[object], inputs: Sequence[object]) -> None:
    """Refuse an output that is an input, or two that are one; what is no path is passed over.

    Raises:
        UsageError: There is one.
    """
    kinds = (str, os.PathLike)
    written = [Path(path) for path in outputs if isinstance(path, kinds)]
    read = [Path(path) for path in inputs if isinstance(path, kinds)]
    for i, target in enumerate(written):
        with contextlib.suppress(OSError):  # whoever opens it says so
            for source in read:
                if target.exists() and source.exists() and target.samefile(source):
                    raise UsageError(
                        f"the output '{target}' is an input: choose another name, inputs are never modified"
                    )
            if any(target.absolute() == other.absolute() for other in written[:i]):
                raise UsageError(f"two outputs go to '{target}': choose another name for one")


def check_folder(path: Path) -> None:
    """Refuse a folder that cannot be written to or made, before there is anything to put there.

    Raises:
        OutputError: It, or the first folder above it that there is, is closed or is a file.
    """
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise OutputError(f"cannot make the folder '{path}': '{there}' is a file")
    if not os.access(there, os.W_OK):
        raise OutputError(f"cannot write to '{path}': Permission denied")


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".partial", delete=False, encoding="utf-8"
        ) as file:
            temporary = Path(file.name)
            try:
                file.write(text)
                file.flush()
                temporary.chmod(0o644)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OutputError:
    """What an OSError says to a user."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    why = "no space is left for it" if full else (error.strerror or str(error))
    return OutputError(f"cannot write '{path}': {why}; nothing was left behind")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
