"""DVC's page of plots with the scripts in it that draw them: `dvc plots show` then needs no network.

`make` sets it up: python -m dqlora.report.plots_page PAGE, then dvc config --local plots.html_template PAGE
"""

import sys
from pathlib import Path

from dvc_render.html import PAGE_HTML
from vl_convert import javascript_bundle

VEGA_LITE = "5.21"  # the last of the major version that DVC's plots are written in


def plots_page() -> str:
    """A template for DVC's option plots.html_template, which loads nothing."""
    scripts = javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return PAGE_HTML.replace("{scripts}", f'<meta charset="utf-8"><script>{scripts}</script>')


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(plots_page(), encoding="utf-8")
