"""Names are any text: what would move a cursor, forge a line or turn what is read is shown as an escape, everywhere."""

from __future__ import annotations

import json
import tomllib
import unicodedata
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from tests import graphs
from trp_onnx.cli.main import main

NASTY = {
    "clear the screen": "a\x1b[2Jb",
    "set the title": "a\x1b]0;owned\x07b",
    "forge a line": "a\ntrp-onnx: error: forged",
    "go back": "a\r\x08\x08b",
    "one byte of control": "a\x9b2Jb",
    "turn the direction": "a\u202eb\u2066c",
    "cannot be seen": "a\u200bb\u2028c\ufeff",
    "a NUL": "a\0b",
    "markup": "[red]a[/red] [/] \\",
    "formula": "$x^$ {{ 7*7 }} <script>alert(1)</script>",
    "long": "n" * 3000,
}


def named(path: Path, name: str) -> Path:
    """Every name of the model has the text in it."""
    model = onnx.load(graphs.conv_net(path))
    for node in model.graph.node:
        node.name += name
        for names in (node.input, node.output):
            for i, value in enumerate(names):
                names[i] = value + name
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name += name
    onnx.save(model, path)
    return path


def clean(result: Result) -> None:
    """What was printed holds line ends and what can be seen."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    for text in (result.stdout, result.stderr):
        seen = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
        assert seen <= {"\n"}, seen
        assert not any(line.startswith("trp-onnx: error: forged") for line in text.splitlines())


@pytest.mark.parametrize("kind", NASTY)
def test_names_reach_the_terminal_as_escapes(tmp_path: Path, kind: str) -> None:
    model = named(tmp_path / "m.onnx", NASTY[kind])
    out, plan, document = tmp_path / "o.onnx", tmp_path / "plan.toml", tmp_path / "r.json"
    clean(CliRunner().invoke(main, ["inspect", str(model), "-v"]))
    done = CliRunner().invoke(
        main,
        ["compress", str(model), "-o", str(out), "--macs", "0.6", "--align", "1", "--save-plan", str(plan),
         "--json", str(document)],
    )  # fmt: skip
    clean(done)
    assert done.exit_code == 0, done.output
    # What goes to files is read back as it was: the plan is a map of the same layers.
    names = [layer["name"] for layer in json.loads(document.read_text())["layers"]]
    assert [name for name in names if name.endswith(NASTY[kind])]
    text = plan.read_text(encoding="utf-8")
    tomllib.loads(text)
    assert {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")} <= {"\n"}
    again = CliRunner().invoke(
        main, ["compress", str(model), "-o", str(tmp_path / "p.onnx"), "--config", str(plan), "--align", "1"]
    )
    clean(again)
    assert again.exit_code == 0, again.output
    assert graphs.network_of(tmp_path / "p.onnx") == graphs.network_of(out)


@pytest.mark.parametrize("kind", NASTY)
def test_names_in_warnings(tmp_path: Path, kind: str) -> None:
    """A network that is ruined is said with the names of its inputs and outputs."""
    model, config = named(tmp_path / "m.onnx", NASTY[kind]), tmp_path / "least.toml"
    config.write_text('[[layer]]\nname = "*"\nscheme = "channel"\nrank = 1\n[[layer]]\nname = "fc*"\nrank = 1\n')
    out = str(tmp_path / "o.onnx")
    done = CliRunner().invoke(main, ["compress", str(model), "-o", out, "--config", str(config), "-q"])
    clean(done)
    assert done.exit_code == 0 and "may be ruined" in done.stdout


@pytest.mark.parametrize("kind", NASTY)
def test_names_in_errors(tmp_path: Path, kind: str) -> None:
    model = onnx.load(named(tmp_path / "m.onnx", NASTY[kind]))
    model.graph.node[3].input[0] = "nobody" + NASTY[kind]
    onnx.save(model, tmp_path / "m.onnx")
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.onnx")])
    clean(result)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "which nothing makes" in result.stderr


def test_names_on_the_page(tmp_path: Path) -> None:
    model = named(tmp_path / "m.onnx", NASTY["turn the direction"] + NASTY["clear the screen"] + NASTY["formula"])
    done = CliRunner().invoke(
        main,
        ["compress", str(model), "-o", str(tmp_path / "o.onnx"), "--macs", "0.6", "--align", "1", "--report",
         str(tmp_path / "page")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert not {c for c in page if unicodedata.category(c) in ("Cf", "Zl", "Zp")}
    assert "\x1b" not in page
    assert "\\u202e" in page
