"""Options in groups: `--help` shows the common ones, a sentence each, `--help-all` every one with all that it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click


class GroupedOption(click.Option):
    """An option under a heading.

    Attributes:
        group: The heading.
        common: Whether `--help` shows it.
    """

    def __init__(self, *args: Any, group: str = "Other", common: bool = True, **attributes: Any) -> None:
        """Like `click.Option`, with a heading."""
        super().__init__(*args, **attributes)
        self.group, self.common = group, common
        _, *rest = re.split(r"(?<=\.) (?!\[)", self.help or "", maxsplit=1)
        self._rest = rest[0].partition(" [default")[0] if rest else ""
        self.says_more = bool(self._rest)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Its flags and what they do, see the module."""
        record = super().get_help_record(ctx)
        if record is None or not self.says_more or ctx.meta.get(_ALL):
            return record
        return record[0], record[1].replace(f" {self._rest}", "", 1)


def option(*names: str, group: str, common: bool = True, **attributes: Any) -> Callable[[Any], Any]:
    """`click.option` under a heading."""
    return click.option(*names, cls=GroupedOption, group=group, common=common, **attributes)


class GroupedCommand(click.Command):
    """A command whose help lists its options under their headings, in the order in which they first come."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        """Like `click.Command`; it has `--help-all`."""
        super().__init__(*args, **attributes)
        self.params.append(
            click.Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_all,
                help="Show every option and exit.",
            )
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group; plain ones last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        left_out = 0
        for parameter in sorted(self.get_params(ctx), key=lambda p: not isinstance(p, GroupedOption)):
            record = parameter.get_help_record(ctx)
            if record is None or not isinstance(parameter, click.Option):
                continue
            if isinstance(parameter, GroupedOption) and not parameter.common and not ctx.meta.get(_ALL):
                left_out += 1
                continue
            heading = parameter.group if isinstance(parameter, GroupedOption) else "Other"
            groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        if left_out:
            formatter.write_paragraph()
            formatter.write_text(f"{left_out} more options: --help-all.")


_ALL = "trp_onnx.help_all"


def _show_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
