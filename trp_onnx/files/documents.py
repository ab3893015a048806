"""TOML and JSON files that users write or give back: read whole, or refused in one sentence.

Dataclasses are their schemas, with bounds in the annotations: `Annotated[int, Meta(ge=1)]`. msgspec holds values to
them, whether they come from a file (`converted`) or from Python (`conform`).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from trp_onnx.errors import TrpOnnxError, UsageError

T = TypeVar("T")

LARGEST = 64 << 20
"""Bytes of a file that is read; the latency table of a network of 10,000 layers has a tenth of that."""

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


def conform(instance: Any) -> None:
    """Hold a frozen dataclass to the types of its fields; its `__post_init__` calls this.

    What stands for a value becomes it: a list a tuple, a number of numpy one of Python.

    Raises:
        UsageError: A field has no value of its type.
    """
    for name, hint in _hints(type(instance)).items():  # type: ignore[arg-type]
        values = {name: getattr(instance, name)}
        try:
            object.__setattr__(instance, name, msgspec.convert(plain(values[name]), hint))
        except msgspec.ValidationError as reason:
            raise UsageError(_sentence(reason, values, {name: hint}, name)) from reason
        except (AttributeError, RecursionError) as reason:  # what `plain` does not know, or nested too deeply
            raise UsageError(f"{name} takes no {type(values[name]).__name__}") from reason


@cache
def _hints(kind: type) -> dict[str, Any]:
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


def read_toml(path: Path, what: str, error: type[TrpOnnxError]) -> dict[str, Any]:
    """A TOML file.

    Args:
        path: The file.
        what: What it is to the user, e.g. "the configuration".
        error: What is raised.

    Raises:
        TrpOnnxError: Of the given kind: not there, too large, not UTF-8, not TOML, or nested too deeply.
    """
    document: dict[str, Any] = _parsed(path, what, "TOML", tomllib.loads, error)
    return document


def read_json(path: Path, what: str, error: type[TrpOnnxError]) -> Any:
    """A JSON file; a key that comes twice is an error. Otherwise as `read_toml`."""
    return _parsed(path, what, "JSON", lambda text: json.loads(text, object_pairs_hook=_once), error)


def _parsed(path: Path, what: str, kind: str, parse: Callable[[str], Any], error: type[TrpOnnxError]) -> Any:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise error(f"{what} '{path}' cannot be read: it is no regular file")
        if path.stat().st_size > LARGEST:
            raise error(f"{what} '{path}' cannot be read: it is larger than {LARGEST >> 20} MiB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as reason:
        raise error(f"{what} '{path}' cannot be read: {reason.strerror}") from reason
    except UnicodeDecodeError as reason:
        raise error(f"{what} '{path}' cannot be read: it is not UTF-8 ({reason.reason})") from reason
    except ValueError as reason:  # a path with a NUL in it
        raise error(f"{what} '{path}' cannot be read: {reason}") from reason
    try:
        return parse(text)
    except RecursionError as reason:
        raise error(f"{what} '{path}' is not {kind} that can be read: it is nested too deeply") from reason
    except ValueError as reason:  # theirs, and that of a number of thousands of digits
        line = (str(reason).splitlines() or [""])[0].partition("; use sys.")[0]
        raise error(f"{what} '{path}' is not {kind}: {line}") from reason


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key '{twice[:100]}' comes twice")
    return found
