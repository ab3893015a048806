"""Options in groups: `--help` shows the common ones, `--help-all` every one."""

from __future__ import annotations

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


def option(*names: str, group: str, common: bool = True, **attributes: Any) -> Callable[[Any], Any]:
    """`click.option` under a heading."""
    return click.option(*names, cls=GroupedOption, group=group, common=common, **attributes)


class GroupedCommand(click.Command):
    """A command whose help lists its options under their headings, in the order in which they first come."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        """Like `click.Command`; it has `--help-all` where not all options are common."""
        super().__init__(*args, **attributes)
        if any(not parameter.common for parameter in self.params if isinstance(parameter, GroupedOption)):
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
