"""README and docs: short, in the field's words, with links that resolve and no path outside the project."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*GUIDES, *sorted((ROOT / "presets").rglob("README.md")), *sorted((ROOT / "research").rglob("README.md"))]
SETTINGS = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
LONGEST = 150  # lines
# words that were this project's own, as patterns; their places have the field's now
RETIRED = (
    r"base_reads", r"entropy_limit", r"\bset[_ ]aside\b", r"_letters\b", r"_alignment\b", r"target[=:] ?notebook",
    r"\binterpolation\b", r"wer_relative", r"\bgain\.", r"(?<!peak_)memory_mb", r"audio_seconds_per_second",
    r"\bPacked", r"FromFeatures", r"\bSwitched\b", r"\bthe switch\b", r"\bswitched\b", r"head_steps",
    r"whole_folder", r"write_whole", r"heard_by_teacher", r"trainable_share", r"-m (study|pretrain)\b",
    r"metrics/study", r"\b(first|second|third|fourth|fifth|sixth|seventh|eighth|ninth)(_again)?\.jsonl",
)  # fmt: skip


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_a_page_is_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve_inside_the_project(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if not link.startswith(("https://", "http://", "#")):
            target = (page.parent / link.partition("#")[0]).resolve()
            assert target.is_relative_to(ROOT) and target.exists(), f"{name(page)}: {link}"


@pytest.mark.parametrize("page", [*PAGES, *SETTINGS, ROOT / "Makefile"], ids=name)
def test_no_path_leads_outside_the_project(page: Path) -> None:
    """Links are checked above; commands run from the project's root."""
    assert "../" not in LINK.sub("", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [*PAGES, *SETTINGS], ids=name)
def test_no_retired_word(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [match[0] for pattern in RETIRED if (match := re.search(pattern, text))]
    assert not found, f"{name(page)}: {found}"
