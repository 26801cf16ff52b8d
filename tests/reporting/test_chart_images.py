"""Pictures for papers and cards."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mlx_dpo import UserError
from mlx_dpo.reporting.chart_images import parse_image_formats, write_chart_images
from mlx_dpo.reporting.run_statistics import RunStatistics


def test_an_image_per_chart_and_format(answers_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write_chart_images([RunStatistics.read(answers_run)], tmp_path, ["png", "svg"])
    names = {file.stem for file in written}
    assert {"curves", "loss", "logps", "reward_kl"} <= names and len(written) == 2 * len(names)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    drawn = ElementTree.parse(tmp_path / "loss.svg").getroot()
    lines = [element for element in drawn.iter() if (element.get("id") or "").startswith("line2d")]
    assert len(lines) > 2


def test_bad_formats_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'gif' is not one of png, svg"):
        parse_image_formats("png,gif")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"mlx-dpo\[plots\]"):
        parse_image_formats("png")
    assert parse_image_formats(None) == []
