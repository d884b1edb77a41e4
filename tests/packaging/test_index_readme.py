"""The README as a package index renders it: each of its links leads somewhere."""

import re
from html import unescape
from pathlib import Path

import pytest
from readme_renderer import markdown

from index_readme import index_readme

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SOURCE = "https://repository.example/numbers-uring"


def rendered(source: str | None) -> str:
    html = markdown.render(index_readme(README, source, "7.8.9"))
    assert html is not None
    return html


def links(html: str) -> list[str]:
    return [unescape(link) for link in re.findall(r'(?:href|src)="([^"]*)"', html)]


def test_the_readme_has_links_and_pictures_that_would_lead_nowhere() -> None:
    found = links(markdown.render(README) or "")
    assert any(link.startswith("docs/") and link.endswith(".md") for link in found)
    assert any(link.endswith(".svg") for link in found)


@pytest.mark.parametrize("source", [None, SOURCE, SOURCE + "/"])
def test_every_link_has_a_host_or_is_within_the_page(source: str | None) -> None:
    html = rendered(source)
    assert links(html)
    within = set(re.findall(r'\bid="([^"]+)"', html))
    for link in links(html):
        assert link.startswith("https://") or link.removeprefix("#") in within
    # Nothing of the notation is left over, and nothing but links has changed.
    assert re.findall(r"\]\([^)]*\)", html) == []
    for tag in ("<table", "<pre", "<h2", "<li"):
        assert html.count(tag) == (markdown.render(README) or "").count(tag) > 0


def test_links_into_the_repository_lead_to_files_of_it() -> None:
    html = rendered(SOURCE)
    ours = [link.removeprefix(SOURCE) for link in links(html) if link.startswith(SOURCE)]
    assert len(ours) > 10
    for link in ours:
        form, path = re.fullmatch(r"/(blob|raw)/v7\.8\.9/([^#]+)(?:#.*)?", link).groups()  # type: ignore[union-attr]
        assert (ROOT / path).exists(), path
        assert form == "blob" or f'src="{SOURCE}{link}"' in html


def test_without_a_repository_words_and_captions_remain() -> None:
    html = rendered(None)
    assert "<img" not in html
    words = re.findall(r"\[!\[([^]]+)\]", README)
    assert words
    for caption in words:
        assert f"<em>{caption}</em>" in html
