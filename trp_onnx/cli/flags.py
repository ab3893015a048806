"""Flags made from the fields of a dataclass: its names, types, defaults and docstring are those of the command line."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Collection
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from trp_onnx.cli.help import option

T = TypeVar("T")


class Pair(click.ParamType[tuple[str, float]]):
    """`name=2.5`."""

    name = "NAME=X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name and the number."""
        if isinstance(value, tuple):
            return value
        name, separator, number = str(value).rpartition("=")
        try:
            return name, float(number) if separator else self.fail(f"'{value}' is not of the form name=1.0")
        except ValueError:
            self.fail(f"'{value}' is not of the form name=1.0", param, ctx)


class Words(click.ParamType[tuple[Any, ...]]):
    """`a,b`; `none` for none."""

    name = "A,B"

    def __init__(self, kind: type) -> None:
        """Of one kind of entries."""
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The entries."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",") if word.strip() not in ("", "none")]
        try:
            return tuple(self._kind(word) for word in words)
        except ValueError:
            self.fail(f"'{value}' is not of the form {self._kind.__name__},{self._kind.__name__}", param, ctx)


class NumberOr(click.ParamType[int | str]):
    """A whole number, or a word."""

    def __init__(self, word: str) -> None:
        """Know the word."""
        self._word, self.name = word, f"N|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or the word."""
        try:
            return value if value == self._word else int(value)
        except ValueError:
            self.fail(f"'{value}' is neither a whole number nor {self._word}", param, ctx)


def flags_of(
    kind: type, group: str, common: Collection[str] = (), *, without: Collection[str] = (), negatable: bool = True
) -> list[Callable[[Any], Any]]:
    """One option for every field of a dataclass; None stands for one that is not given.

    Args:
        kind: The dataclass. Its docstring says what each field is, under "Attributes".
        group: The heading of the options.
        common: Fields that `--help` shows; `--help-all` shows the others too.
        without: Fields that have no option of this kind.
        negatable: Whether yes and no both have a flag, because a file may say either; what may be left open always has.
    """
    fields = [field for field in dataclasses.fields(kind) if field.name not in without]
    hints, texts = _hints(kind, [field.name for field in fields]), field_docs(kind)
    return [
        option(
            *_names(field.name, hints[field.name], negatable=negatable),
            group=group,
            common=field.name in common,
            help=_help(texts[field.name], field),
            **_attributes(hints[field.name]),
        )
        for field in fields
    ]


def filled(kind: type[T], options: dict[str, Any], **more: Any) -> T:
    """A dataclass from what its flags gave; those options are taken out.

    Raises:
        UsageError: The dataclass refuses a value.
    """
    names = [field.name for field in dataclasses.fields(kind) if field.name in options]  # type: ignore[arg-type]
    given = {name: options.pop(name) for name in names}
    return kind(**{name: value for name, value in given.items() if value is not None}, **more)


def _hints(kind: type, names: Collection[str]) -> dict[str, Any]:
    """Types of some fields; those of others may be known to a type checker alone."""
    known = {name: text for name, text in kind.__annotations__.items() if name in names}
    return get_type_hints(SimpleNamespace(__annotations__=known), vars(sys.modules[kind.__module__]))


def field_docs(kind: type) -> dict[str, str]:
    """What a class's docstring says of its attributes, by name, each on one line."""
    _, _, section = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE):
        found[name] = re.sub(r"\s+", " ", text).replace("`", "")
    return found


def _names(name: str, hint: Any, *, negatable: bool) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if get_origin(hint) is dict:  # given one at a time
        return [flag.removesuffix("s"), name]
    either = hint == bool | None or (hint is bool and negatable)
    return [f"{flag}/--no-{flag[2:]}", name] if either else [flag, name]


def _attributes(hint: Any) -> dict[str, Any]:
    """What click has to know of a type."""
    if get_origin(hint) in (Union, UnionType):
        hint, *words = (part for part in get_args(hint) if part is not NoneType)
        if words:
            return {"type": NumberOr(*get_args(words[0]))}
    origin = get_origin(hint)
    if origin is dict:
        return {"type": Pair(), "multiple": True}
    if hint is bool:
        return {"is_flag": True, "default": None}
    if origin is tuple:
        kind = get_args(hint)[0]
        return {"type": Words(str if get_origin(kind) is Literal else kind)}
    return {"type": click.Choice(get_args(hint)) if origin is Literal else hint}


def _help(text: str, field: dataclasses.Field[Any]) -> str:
    """The sentence of the docstring, and the default where there is one."""
    default = field.default
    if default is None or default is dataclasses.MISSING or default is False:
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else "yes" if default is True else default
    return f"{text.removesuffix('.')}. [default: {shown}]"
