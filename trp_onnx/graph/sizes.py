"""The sizes of a model's inputs: declared, given, taken from what is fed.

A size that is declared by name is the same wherever the name stands. What the first axis counts is the batch, 1 where
nothing says otherwise; channels are those of the first convolution's weight. Other sizes that nobody gives stay
unknown.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trp_onnx.errors import ModelError, UsageError

Shape = tuple[int | None, ...]

Declared = tuple[int | str | None, ...]
"""What an input declares: numbers, symbols, None for a size that has neither."""

_PLACEHOLDER = re.compile(r"[\s?*]*|none|null|unk|unknown|-1", re.IGNORECASE)
"""What exporters write where they have no name; it binds nothing together."""

LENGTH = re.compile(r".*(seq|len|time|frame|step|token|width|height).*|[tlswh]", re.IGNORECASE)
"""Names of a first axis that is no batch."""


_PER_CHANNEL = {"Add", "BatchNormalization", "Cast", "Clip", "Div", "Identity", "Mul", "Sub"}
"""What may stand between an input and its first convolution."""


def real_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that a caller must feed: those that are not initializers as well (IR 3)."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def declared_sizes(model: ir.Model) -> dict[str, Declared | None]:
    """What each input declares: sizes, names, or None where there is neither; None for an input without a rank."""
    return {value.name or "": _declared(value) for value in real_inputs(model)}


def input_dims(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Shape | None]:
    """The shape with which each input is counted: given, else declared with batch 1; None = no rank known.

    A named size that one given shape settles is settled in the others.

    Raises:
        ModelError: A given shape names no input, or contradicts what the model declares.
    """
    given = dict(input_shapes or {})
    declared = declared_sizes(model)
    for name, shape in given.items():
        if name not in declared:
            raise ModelError(f"--input-shape names '{name}', but {describe_inputs(model)}")
        if not _fits(shape, declared[name]):
            raise ModelError(
                f"--input-shape {name}:{','.join(map(str, shape))} does not fit input '{name}', "
                f"which is declared as {_text(declared[name])}"
            )
    named = {
        size: settled
        for name, shape in given.items()
        for size, settled in zip(declared[name] or (), shape, strict=False)
        if isinstance(size, str)
    }
    for sizes in declared.values():
        if sizes and isinstance(sizes[0], str):
            named.setdefault(sizes[0], 1)
    dims: dict[str, Shape | None] = {}
    for name, sizes in declared.items():
        if name in given:
            dims[name] = tuple(given[name])
        elif sizes is None:
            dims[name] = None
        else:
            known = tuple(named.get(size) if isinstance(size, str) else size for size in sizes)
            dims[name] = (1, *known[1:]) if sizes and sizes[0] is None else known
    for value in real_inputs(model):
        found = dims[value.name or ""]
        if found is not None and len(found) > 2 and found[1] is None:
            dims[value.name or ""] = (found[0], channels_of(value), *found[2:])
    return dims


def sizes_from(
    model: ir.Model,
    fed: Mapping[str, np.ndarray],
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    samples: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Input shapes completed by what is fed, for counting and timing: a batch that the model leaves free is 1.

    Args:
        model: The model.
        fed: Arrays by input, as the model takes them.
        input_shapes: Those that the user gave.
        samples: Whether the first axis of each array counts samples, whatever the model calls it.

    Raises:
        ModelError: See `input_dims`.
        UsageError: A given shape contradicts what is fed.
    """
    given = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    declared = declared_sizes(model)
    firsts = {(sizes[0], len(sizes)) for sizes in declared.values() if sizes and isinstance(sizes[0], str)}
    batches = {name for name, rank in firsts if samples or (rank > 1 and not LENGTH.fullmatch(str(name)))}
    found = dict(given)
    for name, sizes in declared.items():
        if name not in fed:
            continue
        shape = list(np.shape(fed[name]))
        for axis, size in enumerate(sizes or ()):
            if isinstance(size, int):
                shape[axis] = size  # a short batch is filled up
            elif size in batches or (axis == 0 and size is None and (samples or len(shape) > 1)):
                shape[axis] = 1
        if name in given and not _agree(given[name], shape, sizes):
            raise UsageError(
                f"--input-shape {name}:{','.join(map(str, given[name]))} contradicts the data, whose samples give "
                f"{','.join(map(str, shape))}: leave it out"
            )
        found.setdefault(name, tuple(shape))
    input_dims(model, found)  # refuses what does not fit
    return found


def channels_of(value: ir.Value) -> int | None:
    """How many channels the first convolutions behind an input have, which is its own number; None where none is."""
    seen, front = {value}, [value]
    while front:
        flow = front.pop()
        for node, index in flow.uses():
            weight = node.inputs[1] if node.op_type == "Conv" and index == 0 else None
            shape = None if weight is None else weight.const_value.shape if weight.const_value else weight.shape
            if shape is not None and len(shape) == len(value.shape or ()) and isinstance(shape[1], int):
                return int(shape[1]) * node.attributes.get_int("group", 1)
            if node.op_type in _PER_CHANNEL and index == 0:
                front += [output for output in node.outputs if output not in seen]
                seen.update(node.outputs)
    return None


def describe_inputs(model: ir.Model) -> str:
    """A clause for messages: "the model's inputs are 'ids' (batch,seq) and 'mask' (batch,seq)"."""
    return describe_sizes(declared_sizes(model))


def describe_sizes(declared: Mapping[str, Declared | None]) -> str:
    """The same of declared sizes by name."""
    inputs = [f"'{name}' ({_text(sizes)})" for name, sizes in declared.items()]
    if len(inputs) == 1:
        return f"the model's input is {inputs[0]}"
    return f"the model's inputs are {', '.join(inputs[:-1])} and {inputs[-1]}" if inputs else "the model has no inputs"


def shape_options(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> str:
    """The `--input-shape` options that a user may copy, one for each input with unknown sizes, for messages."""
    options = []
    for name, dims in input_dims(model, input_shapes).items():
        if dims is None or None in dims:
            free = 224 if dims is not None and len(dims) > 3 else 16
            options.append(f"--input-shape {name}:{','.join(str(d or free) for d in dims or (1, 16))}")
    return " ".join(options)


def free_sizes(model: ir.Model) -> None:
    """Make sizes that are declared as -1 free ones, in place, wherever they stand.

    Raises:
        ModelError: An input or output declares another negative size.
    """
    outside = {*model.graph.inputs, *model.graph.outputs}
    for value in _declaring(model):
        if value.shape is None or not any(isinstance(size, int) and size < 0 for size in value.shape):
            continue
        wrong = [size for size in value.shape if isinstance(size, int) and size < -1]
        if wrong and value in outside:
            kind = "input" if value.is_graph_input() else "output"
            raise ModelError(
                f"{kind} '{value.name}' declares a size of {wrong[0]}: sizes are 0 or more, -1 for free ones"
            )
        value.shape = ir.Shape([None if isinstance(size, int) and size < 0 else size for size in value.shape])


def _declaring(model: ir.Model) -> Iterator[ir.Value]:
    """The values that may declare a shape, initializers excepted: their arrays have one."""
    values = itertools.chain(
        model.graph.inputs,
        *(graph.inputs for graph in model.graph.subgraphs()),
        (output for node in model.graph.all_nodes() for output in node.outputs),
    )
    return (value for value in values if not value.is_initializer())


def _declared(value: ir.Value) -> Declared | None:
    if value.shape is None:
        return None
    sizes = (size if isinstance(size, int) else size.value for size in value.shape)
    return tuple(
        None if size is None or (isinstance(size, str) and _PLACEHOLDER.fullmatch(size)) else size for size in sizes
    )


def _fits(shape: Sequence[int], declared: Sequence[int | str | None] | None) -> bool:
    return declared is None or (
        len(shape) == len(declared)
        and all(not isinstance(want, int) or want == have for want, have in zip(declared, shape, strict=True))
    )


def _agree(given: Sequence[int], fed: Sequence[int], declared: Sequence[int | str | None] | None) -> bool:
    """Whether a given shape is that of what is fed, but for the batch."""
    if len(given) != len(fed):
        return False
    return all(
        a == b or (b == 1 and declared is not None and not isinstance(declared[axis], int))
        for axis, (a, b) in enumerate(zip(given, fed, strict=True))
    )


def _text(sizes: Sequence[int | str | None] | None) -> str:
    return "any shape" if sizes is None else ",".join("?" if size is None else str(size) for size in sizes)
