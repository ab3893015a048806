"""The rules of a plan: one for the network, and the per-layer map, a TOML file that says what some layers become.

    [[layer]]
    name = "layer3/*"          # a glob on layer names, or
    regex = "^conv[12]$"       # a regular expression (RE2's syntax), searched in them
    scheme = "tucker2"         # optional; any name of --scheme
    rank = [16, 24]            # one of: rank (a number; [r_in, r_out] for tucker2),
    ratio = 0.5                #   ratio (MACs of the layer, at most that part of before),
    energy = 0.05              #   energy (discard at most that part of the squared singular values),
    vbmf = true                #   vbmf,
    keep = true                #   keep (leave it dense)

    [[space]]
    name = "features.*"        # or regex, on names of spaces (see `inspect`)
    units = 80                 # one of: units (so many stay), ratio (at most that part of them), keep

The first entry that matches a layer or a space counts. Layers that no entry matches follow the rule of the command
line, or are kept when it gives none. An entry with a scheme alone restricts that rule to the scheme.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from msgspec import Meta

from trp_onnx.errors import UsageError
from trp_onnx.files.documents import read_toml
from trp_onnx.job.search_space import SCHEME_CHOICES
from trp_onnx.printable import printable
from trp_onnx.schema import brief, conform, converted, path_of

if TYPE_CHECKING:
    from trp_onnx.planning.plan import Decision, SpaceDecision

_TARGETS = ("rank", "ratio", "energy", "vbmf", "keep")
_KEYS = ("name", "regex", "scheme", *_TARGETS)
_SPACE_KEYS = ("name", "regex", "units", "ratio", "keep")
Part = Annotated[float, Meta(ge=0, lt=1)]


@dataclass(frozen=True)
class LayerRule:
    """What one entry of the map asks for; at most one of the targets is set.

    Raises:
        UsageError: A value makes no sense.
    """

    pattern: Annotated[str, Meta(max_length=10_000)]
    regex: bool = False
    scheme: str | None = None
    rank: Annotated[tuple[Annotated[int, Meta(ge=1, lt=2**31)], ...], Meta(min_length=1, max_length=2)] | None = None
    ratio: Part | None = None
    energy: Part | None = None
    vbmf: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        conform(self)
        if self.scheme is not None and self.scheme not in SCHEME_CHOICES:
            raise UsageError(f"unknown scheme {brief(self.scheme)}; there are {', '.join(SCHEME_CHOICES)}")
        if len(self.targets) > 1:
            raise UsageError(f"give only one of {', '.join(_TARGETS)}, not {' and '.join(self.targets)}")
        if self.regex:
            _compiled(self.pattern)

    @property
    def targets(self) -> list[str]:
        """Those that are set: none where the entry names a scheme alone, and one in any other."""
        return [key for key in _TARGETS if getattr(self, key) is not None and getattr(self, key) is not False]

    @property
    def of_spaces(self) -> bool:
        """Whether the entry speaks of spaces."""
        return False

    def matches(self, name: str) -> bool:
        """Whether the entry speaks of the layer of this name."""
        return bool(_compiled(self.pattern).search(name)) if self.regex else fnmatch.fnmatchcase(name, self.pattern)


@dataclass(frozen=True)
class SpaceRule:
    """How many units of some spaces stay.

    Raises:
        UsageError: A value makes no sense.
    """

    pattern: Annotated[str, Meta(max_length=10_000)]
    regex: bool = False
    units: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    ratio: Annotated[float, Meta(gt=0, le=1)] | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        conform(self)
        given = [key for key in ("units", "ratio", "keep") if getattr(self, key)]
        if len(given) != 1:
            raise UsageError(f"say of the space '{self.pattern}' either units, ratio or keep = true")
        if self.regex:
            _compiled(self.pattern)

    @property
    def of_spaces(self) -> bool:
        """Whether the entry speaks of spaces."""
        return True

    def matches(self, name: str) -> bool:
        """Whether the entry speaks of the space of this name."""
        return bool(_compiled(self.pattern).search(name)) if self.regex else fnmatch.fnmatchcase(name, self.pattern)


Rule = LayerRule | SpaceRule
_Kind = TypeVar("_Kind", LayerRule, SpaceRule)


@lru_cache
def _compiled(pattern: str) -> Any:
    """Of RE2, whose time is in proportion to the name whatever the pattern is.

    Raises:
        UsageError: Not a pattern, or one that needs what RE2 leaves out.
    """
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0] if error.args else ""
        why = why.decode(errors="replace") if isinstance(why, bytes) else why
        raise UsageError(
            f"'{pattern}' is not a regular expression: {why} (the syntax is RE2's: no lookaround, no backreferences)"
        ) from error


def read_rules(path: str | PathLike[str]) -> tuple[Rule, ...]:
    """Read a map.

    Raises:
        UsageError: No such file, not TOML, an unknown key, or a value that makes no sense.
    """
    document = read_toml(path_of(path, "the map"), "the configuration", UsageError)
    found = converted(document, _Map, f"the configuration '{path}' holds [[layer]] and [[space]] entries")
    layers = (_rule(entry, LayerRule, _KEYS, f"'{path}', layer entry {i}") for i, entry in enumerate(found.layer, 1))
    spaces = (
        _rule(entry, SpaceRule, _SPACE_KEYS, f"'{path}', space entry {i}") for i, entry in enumerate(found.space, 1)
    )
    return (*layers, *spaces)


def plan_to_toml(decisions: Iterable[Decision], spaces: Iterable[SpaceDecision] = ()) -> str:
    """A plan as a map that can be edited and given back, its reasons as comments."""
    lines = ["# A plan of trp-onnx: edit it, and give it back by --config. The first entry that matches counts.", ""]
    for space in spaces:
        lines += [f"# {space.units} {space.kind}; {_one_line(space.reason)}", "[[space]]"]
        lines += [f"regex = {_quoted(f'^{re.escape(space.name)}$')}"]
        lines += ["keep = true" if space.kept == space.units else f"units = {space.kept}", ""]
    for decision in decisions:
        if decision.parameters_before is None:
            lines += [
                f"# {decision.op} {_quoted(decision.name)} cannot be factorised: {_one_line(decision.reason)}",
                "",
            ]
            continue
        lines += [f"# {_one_line(decision.reason)}", "[[layer]]", f"regex = {_quoted(f'^{re.escape(decision.name)}$')}"]
        if decision.scheme is None or decision.rank is None:
            lines.append("keep = true")
        else:
            rank = decision.rank[0] if len(decision.rank) == 1 else list(decision.rank)
            lines += [f'scheme = "{decision.scheme}"', f"rank = {rank}"]
        lines.append("")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are among those of TOML, and what cannot be seen is escaped as well."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if printable(c) == c else f"\\U{ord(c):08x}" for c in quoted)


def first_match(rules: Iterable[Rule], name: str) -> LayerRule | None:
    """The entry that counts for a layer."""
    return next((rule for rule in rules if isinstance(rule, LayerRule) and rule.matches(name)), None)


def space_match(rules: Iterable[Rule], name: str) -> SpaceRule | None:
    """The entry that counts for a space."""
    return next((rule for rule in rules if isinstance(rule, SpaceRule) and rule.matches(name)), None)


def site_match(rules: Sequence[Rule], names: Sequence[str]) -> LayerRule | None:
    """The entry that counts for layers that share a weight: that of any of them.

    Raises:
        UsageError: Two of them have entries that say different things.
    """
    found = {name: rule for name in names if (rule := first_match(rules, name)) is not None}
    wishes = [replace(rule, pattern="", regex=False) for rule in found.values()]
    if any(wish != wishes[0] for wish in wishes):
        one, other = list(found)[:2]
        raise UsageError(f"'{one}' and '{other}' share their weight, but the configuration wants them different")
    return next(iter(found.values()), None)


def check_all_match(rules: Iterable[Rule], names: Iterable[str], spaces: Iterable[str] | None = None) -> None:
    """Refuse an entry that matches nothing: it is a typing error more often than a wish.

    Args:
        rules: The map.
        names: Of the layers.
        spaces: Of the spaces, where they are known.

    Raises:
        UsageError: Such an entry exists.
    """
    known = {LayerRule: list(names), SpaceRule: None if spaces is None else list(spaces)}
    for rule in rules:
        what, among = "layer" if isinstance(rule, LayerRule) else "space", known[type(rule)]
        if among is not None and not any(rule.matches(name) for name in among):
            shown = f"the model has {', '.join(among[:3])}, ..." if among else "the model has none"
            raise UsageError(f"the configuration's '{rule.pattern}' matches no {what}; {shown} (see trp-onnx inspect)")


@dataclass(frozen=True)
class _Map:
    layer: list[dict[str, Any]] = field(default_factory=list)
    space: list[dict[str, Any]] = field(default_factory=list)


def _rule(entry: Mapping[str, Any], kind: type[_Kind], keys: Sequence[str], where: str) -> _Kind:
    """An entry of the file, with `name` or `regex` for a rule's pattern, and a rank that may be a number."""
    unknown = next((key for key in entry if key not in keys), None)
    if unknown is not None:
        raise UsageError(f"{where}: unknown key {brief(unknown)}; known: {', '.join(keys)}")
    if ("name" in entry) == ("regex" in entry):
        raise UsageError(f"{where}: give either name (a glob) or regex")
    values = {"regex": "regex" in entry} | {key: value for key, value in entry.items() if key not in ("name", "regex")}
    values["pattern"] = entry["regex" if values["regex"] else "name"]
    if "rank" in values and not isinstance(values["rank"], list):
        values["rank"] = [values["rank"]]
    return converted(values, kind, where)
