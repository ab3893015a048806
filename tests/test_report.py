"""The page of `--report`: one file, no network, true to the JSON beside it, safe with any name."""

import html.parser
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import trp_onnx
from tests.easy import compress
from tests.graphs import conv_net
from tests.test_command_line import run as cli
from trp_onnx.errors import UsageError


class Page(html.parser.HTMLParser):
    """What a browser would fetch, and what a reader would read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "a":  # followed by the reader, not fetched
            return
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.fetched.append(value)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_says_what_happened(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx", channels=32)
    cli("compress", net, "-o", tmp_path / "out.onnx", "--macs", 0.5, "--align", 1, "--report", tmp_path / "r")
    page = Page(tmp_path / "r" / "report.html")
    document = json.loads((tmp_path / "r" / "report.json").read_text())
    assert page.fetched == [] and "script" not in page.tags and "link" not in page.tags
    assert "@import" not in page.text and not re.search(r"url\((?!#)", (tmp_path / "r" / "report.html").read_text())
    assert f"{document['macs']['ratio']:.0%} of the MACs" in page.text
    for layer in document["layers"]:
        assert layer["name"] in page.text and " ".join(layer["reason"].split()) in page.text
    assert all(output["taken_for"] and output["taken_for"] in page.text for output in document["outputs"])
    assert page.tags.count("svg") == 1 + len(document["layers"])
    assert "trp-onnx" in page.text and "onnxruntime" in page.text


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "net.onnx", channels=32)
    proto = onnx.load(path)
    proto.graph.node[0].name, proto.graph.node[2].name = "<script>alert(1)</script>", "$x_{1}$ & {{ 7 * 7 }} \\frac"
    onnx.save(proto, path)
    compress(path, tmp_path / "out.onnx", macs=0.5, align=1, report_dir=tmp_path / "r", command="<b>now</b>")
    page = Page(tmp_path / "r" / "report.html")
    assert "script" not in page.tags and "b" not in page.tags
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text


@pytest.mark.slow
def test_candidates_and_times_are_drawn(tmp_path: Path) -> None:
    from tests.test_latency_table import labelled, on_a_phone
    from trp_onnx.latency import save_table

    net = conv_net(tmp_path / "net.onnx", channels=64)
    save_table(trp_onnx.profile(net), tmp_path / "table.json")
    table = on_a_phone(tmp_path / "table.json", tmp_path, {"conv1": 0.1, "conv2": 0.8, "fc": 0.0})
    net, data = labelled(net, tmp_path)
    report = compress(
        net, tmp_path / "out.onnx", max_drop=30, data=data, latency_table=table, report_dir=tmp_path / "r"
    )
    page = Page(tmp_path / "r" / "report.html")
    assert "Loss against speed" in page.text and "Time by layer" in page.text and "a phone" in page.text
    document = json.loads((tmp_path / "r" / "report.json").read_text())
    assert len(document["candidates"]) == len(report.candidates) > 1


def test_what_draws_it_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = conv_net(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    with pytest.raises(UsageError, match=r"trp-onnx\[report\]"):
        compress(net, tmp_path / "out.onnx", macs=0.6, report_dir=tmp_path / "r")
    assert not (tmp_path / "r").exists() and not (tmp_path / "out.onnx").exists()


def test_a_tucker_layer_is_drawn(tmp_path: Path) -> None:
    net = conv_net(tmp_path / "net.onnx", channels=32)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((32, 12, 12, 3)).astype(np.float32))
    report = compress(
        net, tmp_path / "out.onnx", macs=0.4, align=1, scheme="tucker2", data=tmp_path / "x.npz",
        report_dir=tmp_path / "r",
    )  # fmt: skip
    assert any(layer.scheme == "tucker2" for layer in report.layers)
    assert Page(tmp_path / "r" / "report.html").tags.count("svg") == 4
