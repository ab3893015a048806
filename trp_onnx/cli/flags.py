"""Flags made from the fields of a dataclass: its names, types, defaults and docstring are those of the command line."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from trp_onnx.cli.help import option


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


def flags_of(kind: type, group: str, common: Collection[str] = ()) -> list[Callable[[Any], Any]]:
    """One option for every field of a dataclass; None stands for one that is not given.

    Args:
        kind: The dataclass. Its docstring says what each field is, under "Attributes".
        group: The heading of the options.
        common: Fields that `--help` shows; `--help-all` shows the others too.
    """
    hints, texts = get_type_hints(kind), field_docs(kind)
    return [
        option(
            *_names(field.name, hints[field.name]),
            group=group,
            common=field.name in common,
            help=_help(texts[field.name], field),
            **_attributes(hints[field.name]),
        )
        for field in dataclasses.fields(kind)
    ]


def field_docs(kind: type) -> dict[str, str]:
    """What a class's docstring says of its attributes, by name, each on one line."""
    _, _, section = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE):
        found[name] = re.sub(r"\s+", " ", text).replace("`", "")
    return found


def _names(name: str, hint: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if get_origin(hint) is dict:  # given one at a time
        return [flag.removesuffix("s"), name]
    return [f"{flag}/--no-{flag[2:]}", name] if hint is bool else [flag, name]


def _attributes(hint: Any) -> dict[str, Any]:
    """What click has to know of a type."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    origin = get_origin(hint)
    if origin is dict:
        return {"type": Pair(), "multiple": True}
    if hint is bool:
        return {"default": None}
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
