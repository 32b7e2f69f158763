"""DVC's page of plots draws them without a network."""

import json
import re
from pathlib import Path

import pytest
from dvc_render.html import render_html
from dvc_render.vega import VegaRenderer

pytest.importorskip("vl_convert", reason="the extra `plots` is not installed")
from vl_convert import vegalite_to_svg

from dqlora.report.plots_page import VEGA_LITE, plots_page

POINTS = [{"step": step, "loss": 1 / (1 + step), "rev": rev} for step in range(3) for rev in ("workspace", "main")]
LOADED = re.compile(r"<(?:script|link)[^>]*(?:src|href)\s*=")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "plots.html"
    path.write_text(plots_page(), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["linear", "simple", "scatter", "smooth", "bar_horizontal"])
def test_a_page_holds_what_draws_it(name: str, template: Path, tmp_path: Path) -> None:
    """As `dvc plots show` and `dvc plots diff` render it; DVC's own page asks an address for three scripts."""
    plot = VegaRenderer(POINTS, "loss", x="step", y="loss", template=name)
    render_html([plot], tmp_path / "dvc.html")
    render_html([plot], tmp_path / "own.html", template)
    other, page = ((tmp_path / f"{made}.html").read_text(encoding="utf-8") for made in ("dvc", "own"))
    assert len(LOADED.findall(other)) == 3 and not LOADED.findall(page)
    scripts, drawn = page.split("vegaEmbed('#loss', spec)")[0].rsplit("var spec = ", 1)
    assert "window.vegaEmbed=" in scripts and page.count("<script") == page.count("</script>") == 2
    assert "<path" in vegalite_to_svg(json.loads(drawn.strip().rstrip(";")), vl_version=VEGA_LITE)
