"""Dataclasses as schemas: of documents (`converted`), and of values from Python (`conform`), both held to by msgspec.

Bounds stand in the annotations: `Annotated[int, Meta(ge=1)]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from trp_onnx.errors import TrpOnnxError, UsageError

T = TypeVar("T")

Count = Annotated[int, Meta(ge=1)]

_KINDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list",
    "object": "a table", "null": "nothing",
}  # fmt: skip
_BOUNDS = {">=": "from", ">": "above", "<=": "up to", "<": "below"}
_REASON = re.compile(r"Expected `(?P<kind>\w+).*?`(?: of (?P<length>length))?(?: (?P<bound>[<>]=?) (?P<limit>\S+))?")
_SHOWN = 60  # characters of a wrong value in a message


class Document:
    """A dataclass that is also a JSON document."""

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON: dicts, lists, numbers and strings."""
        document: dict[str, Any] = plain(self)
        return document


def plain(value: object) -> Any:
    """What JSON holds of a value: of dataclasses their fields, of arrays and numpy's numbers Python's."""
    return msgspec.to_builtins(value, enc_hook=lambda other: other.tolist())


def converted(values: object, kind: type[T], where: str, error: type[TrpOnnxError] = UsageError) -> T:
    """What stands in a document, as a dataclass of ours.

    Args:
        values: From TOML or JSON.
        kind: The dataclass.
        where: What begins the message.
        error: What is raised.

    Raises:
        TrpOnnxError: Of the given kind: a key is unknown or missing, or a value is wrong.
    """
    known = _hints(kind)  # type: ignore[arg-type]  # types are hashable
    for key in values if isinstance(values, dict) else ():
        if key not in known:
            raise error(f"{where}: unknown key {brief(key)}; known: {', '.join(sorted(known))}")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as reason:
        raise error(f"{where}: {_sentence(reason, values, known)}") from reason
    except TrpOnnxError as reason:
        raise error(f"{where}: {reason}") from reason


def conform(instance: Any, *names: str) -> None:
    """Hold a frozen dataclass to the types of its fields; its `__post_init__` calls this.

    What stands for a value becomes it: a list a tuple, a number of numpy one of Python.

    Args:
        instance: The dataclass.
        names: Of the fields; all where none is given.

    Raises:
        UsageError: A field has no value of its type.
    """
    for name, hint in _hints(type(instance), names).items():  # type: ignore[arg-type]
        object.__setattr__(instance, name, held(getattr(instance, name), hint, name))


def held(value: object, hint: Any, name: str) -> Any:
    """A value of Python's held to a type, see `conform`.

    Raises:
        UsageError: It has another.
    """
    try:
        return msgspec.convert(plain(value), hint)
    except msgspec.ValidationError as reason:
        raise UsageError(_sentence(reason, {name: value}, {name: hint}, name)) from reason
    except (AttributeError, OverflowError, RecursionError, TypeError) as reason:  # not known, too large, too deep
        raise UsageError(f"{name} takes no {type(value).__name__}") from reason


def check_type(value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Hold a value to a class of ours, or one of several.

    Raises:
        UsageError: It is of another.
    """
    if not isinstance(value, kind):
        kinds = " or a ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise UsageError(f"{what} is a {kinds}, not {type_of(value)}")


def path_of(given: object, what: str) -> Path:
    """A path that a user gives.

    Raises:
        UsageError: It is none.
    """
    try:
        return Path(given)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{what} is a path, not {type_of(given)}") from error


def type_of(value: object) -> str:
    """What a value is, for a sentence."""
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


@cache
def _hints(kind: type, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Types of all fields, or of some, where the others' are known to type checkers alone."""
    if names:
        kind = type(kind.__name__, (), {"__annotations__": {name: kind.__annotations__[name] for name in names},
                                        "__module__": kind.__module__})  # fmt: skip
    return get_type_hints(kind, include_extras=True)


def brief(value: object) -> str:
    """A value in a message, whatever it is."""
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists in lists
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _sentence(reason: msgspec.ValidationError, values: Any, hints: dict[str, Any], at: str = "") -> str:
    """What msgspec complains of, in our words: "rank[0] takes a whole number from 1, not 0"."""
    said, _, path = str(reason).partition(" - at `$")
    path = (at + path.rstrip("`")).lstrip(".").replace("[...]", "[*]")
    if "missing" in said:
        return f"{path}{'.' * bool(path)}{said.split('`')[1]} is missing"
    shown, path = _shown(values, path), path.replace("[*]", "")
    if "enum" in said:
        field = path.partition(".")[0].partition("[")[0]
        return f"{path} is one of {', '.join(_choices(hints.get(field)))}{shown}"
    found = _REASON.match(said)
    if found is None:
        return f"{path} does not fit: {said.lower()}"
    kind, length, bound, limit = found.groups()
    words = _BOUNDS.get(bound, "") if length is None else f"of {'at least' if bound == '>=' else 'at most'}"
    number = f" {words} {limit if length or kind == 'int' else f'{float(limit):g}'}" if limit else ""
    return f"{path or 'it'} takes {_KINDS[kind]}{number}{shown}"


def _shown(values: Any, path: str) -> str:
    """The value at a path, unless that goes through a table's keys, which msgspec does not tell."""
    for step in re.findall(r"\w+|\*", path):
        if step == "*":
            return ""
        values = values[int(step) if step.isdigit() else step]
    return f", not {brief(values)}"


def _choices(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
        return
    for part in get_args(hint):
        yield from _choices(part)
