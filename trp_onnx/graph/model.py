"""Open models: weights stay on disk until somebody asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from trp_onnx.errors import ModelError
from trp_onnx.graph import soundness
from trp_onnx.graph.sizes import free_sizes
from trp_onnx.process.memory import check_room
from trp_onnx.progress import note

if TYPE_CHECKING:
    import onnx


def open_model(path: Path) -> ir.Model:
    """Open an ONNX file; external data is mapped when it is used, not read.

    Raises:
        ModelError: Not a file, not ONNX, truncated, or external data that is missing, too short or
            outside the model's folder.
    """
    proto = _parse(path)
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"'{path}' is not an ONNX model: it holds no graph")
    _refuse_maps(path, proto)
    try:
        for told in soundness.check(proto):
            note(told)
        model = ir.from_proto(proto)
    except ModelError as error:
        raise ModelError(f"'{path}' is not a valid ONNX model: {error}") from error
    except Exception as error:  # onnx_ir wraps whatever a malformed graph trips over
        raise ModelError(f"'{path}' is not a valid ONNX model: {first_cause(error)}") from error
    _find_external_data(path, model)
    _one_name_for_the_standard_domain(model)
    free_sizes(model)
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()  # onnxruntime takes nodes in any order, and quantisers write them so
    except ValueError as error:
        raise ModelError(f"'{path}' is not a valid ONNX model: its nodes depend on one another in a circle") from error
    return model


def _refuse_maps(path: Path, model: onnx.ModelProto) -> None:
    """ZipMap's outputs: onnx_ir has no type for them."""
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = getattr(kind, str(kind.WhichOneof("value"))).elem_type
        if kind.WhichOneof("value") == "map_type":
            raise ModelError(
                f"'{path}' has the map '{value.name}' among its inputs and outputs, which cannot be read: export it "
                "with arrays (skl2onnx: zipmap=False)"
            )


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


def located(path: Path) -> Path:
    """A path that means the same from any folder; a link stays one, for external data is looked for beside it."""
    return path.parent.resolve() / path.name


def _find_external_data(path: Path, model: ir.Model) -> None:
    """Find external data where onnxruntime looks for it, and refuse what it refuses.

    A location is relative to the folder of the path that was given, also where that path is a link. The file that it
    leads to, all links followed, must be in that folder or in the one that holds the model's own file: so a store may
    keep both as links to where its contents are (`blobs/` of a Hugging Face cache), and neither ".." nor a link
    leads to any other file. How many names a file has (hard links) says nothing.
    """
    here = located(path)
    allowed = (here.parent, here.resolve().parent)
    found: dict[str, Path] = {}
    for tensor in tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = os.fspath(tensor.location)
        if location not in found:
            try:
                target = (here.parent / location).resolve()
                there = target.is_file()
            except (OSError, ValueError, RuntimeError):  # a name that no file can have, a circle of links
                raise ModelError(f"'{path}' keeps its weights in '{location[:100]}', which no file can be") from None
            if Path(location).is_absolute() or not any(target.is_relative_to(folder) for folder in allowed):
                raise ModelError(
                    f"'{path}' is refused: tensor '{tensor.name}' points to '{location}', outside the model's folder"
                )
            if not there:
                raise ModelError(
                    f"'{path}' keeps its weights in '{location}', which is missing: it belongs beside the model's file"
                )
            found[location] = target
        if (tensor.offset or 0) + tensor.nbytes > found[location].stat().st_size:
            raise ModelError(
                f"'{location}', the weights of '{path}', is too short for tensor '{tensor.name}': it is truncated"
            )
        tensor.base_dir = here.parent
        if found[location].stat().st_nlink > 1 or found[location] != here.parent / location:
            # onnx_ir has a rule of its own, against links of both kinds, which an empty base_dir switches off.
            tensor._location, tensor.base_dir = found[location], ""


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


APART_FROM = 512 << 20
"""Bytes of weights from which `to_proto` may leave those that are external in their files."""

_APART_EACH = 1024
"""Bytes from which a tensor may stay: shapes and scalars the runtime wants to know beforehand."""

_LENDABLE = (
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8,
    ir.DataType.INT32, ir.DataType.INT64,
)  # fmt: skip


def to_proto(model: ir.Model, *, apart: bool = False) -> onnx.ModelProto:
    """A copy of a model.

    Args:
        model: Not changed.
        apart: Whether large external weights may stay where they are, by absolute path: `open_session` runs such a
            copy, and nobody else does. Otherwise it is in one piece, for models that fit in memory twice.
    """
    stay = apart and weight_bytes(model) >= APART_FROM
    copy = model.clone()
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if stay and tensor.nbytes >= _APART_EACH and tensor.dtype in _LENDABLE:
            value.const_value = ir.ExternalTensor(
                Path(tensor.path).absolute(), tensor.offset, tensor.nbytes, tensor.dtype,
                shape=tensor.shape, name=value.name or "",
            )  # fmt: skip
        else:
            value.const_value = ir.tensor(tensor.numpy().copy(), name=value.name)
    return ir.to_proto(copy)


ONE_FILE = 1 << 30
"""Bytes of weights up to which `write_model` puts a model into one file; protobuf ends at 2 GiB."""


def write_model(model: ir.Model, path: Path) -> bool:
    """Write a copy of a model that needs no other file but its weights, which are beside it where they are many.

    Returns:
        Whether they are beside it.

    Raises:
        OSError: The disk is full, or any other failure to write.
    """
    beside = weight_bytes(model) > ONE_FILE
    if beside:
        ir.save(model, path, format="protobuf", external_data=f"{path.name}.data")
    else:
        path.write_bytes(to_proto(model).SerializeToString())
    return beside


def has_external_data(model: ir.Model) -> bool:
    """Whether any tensor lives outside the ONNX file."""
    return any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors(model))


def check_weights(model: ir.Model) -> None:
    """See that the files still hold what an open model keeps there.

    Raises:
        ModelError: One is gone, or shorter than it was.
    """
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            path = Path(tensor.path)
            if not path.is_file() or path.stat().st_size < (tensor.offset or 0) + tensor.nbytes:
                raise ModelError(f"the weights of the model are no longer in '{path}': it was removed or changed")


def external_files(path: Path) -> list[Path]:
    """The files in which a model keeps its weights, beside its own; empty where there are none.

    Raises:
        ModelError: See `open_model`.
    """
    return weight_files(open_model(path))


def weight_files(model: ir.Model) -> list[Path]:
    """The files in which an open model keeps its weights, beside its own; empty where there are none."""
    external = (tensor for tensor in tensors(model) if isinstance(tensor, ir.ExternalTensor))
    return [Path(name) for name in sorted({os.fspath(tensor.path) for tensor in external})]


def file_bytes(path: Path, model: ir.Model | None = None) -> int:
    """Size of an ONNX file and the external data that belongs to it; `model` is what was opened of it, if it was."""
    files = external_files(path) if model is None else weight_files(model)
    return sum(file.stat().st_size for file in (path, *files))


def first_cause(error: BaseException) -> str:
    """What the innermost of nested errors says, in its first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def interface_of(model: ir.Model) -> list[object]:
    """Names, types and shapes of a model's inputs and outputs."""
    return [(value.name, value.type, value.shape) for value in (*model.graph.inputs, *model.graph.outputs)]
