"""
The diagrams of the documents as pictures: `python -m tests.support.diagrams` draws those that are missing.

GitHub draws a fence of mermaid itself. The site would fetch a program from elsewhere for it, in the browser of each
reader, so there a picture of `docs/img` stands in its place. Its name has the digest of the fence. Drawing takes npm
and a Chromium.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

from .documents import ROOT

__all__ = ["drawn", "pictures_of"]

_FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_IMAGES = ROOT / "docs/img"
_PROGRAM = "mermaid@11.6.0"
_DRAW = """async source => {
  mermaid.initialize({ startOnLoad: false, theme: "neutral", htmlLabels: false, flowchart: { htmlLabels: false } });
  return (await mermaid.render("diagram", source)).svg;
}"""


def pictures_of(text: str) -> dict[str, str]:
    """Return the diagrams of a document: the name of each picture, and its source."""
    return {f"diagram-{sha256(source.encode()).hexdigest()[:12]}.svg": source for source in _FENCE.findall(text)}


def drawn(page: Path, text: str) -> str:
    """Return the text of a page with a picture in the place of each diagram."""
    names = iter(pictures_of(text))
    up = "../" * len(page.parent.relative_to(ROOT / "docs").parts) if page.is_relative_to(ROOT / "docs") else "docs/"
    return _FENCE.sub(lambda _: f"![A diagram: the text around it says the same]({up}img/{next(names)})", text)


def main() -> None:
    """Draw what is missing, and remove what no document has any more."""
    wanted: dict[str, str] = {}
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]:
        wanted |= pictures_of(page.read_text())
    for old in _IMAGES.glob("diagram-*.svg"):
        if old.name not in wanted:
            old.unlink()
    missing = {name: source for name, source in wanted.items() if not (_IMAGES / name).exists()}
    if missing:
        _draw(missing)


def _draw(missing: dict[str, str]) -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as directory, sync_playwright() as started:
        subprocess.run(["npm", "pack", "--silent", _PROGRAM], cwd=directory, check=True, stdout=subprocess.DEVNULL)
        [archive] = Path(directory).glob("*.tgz")
        shutil.unpack_archive(archive, directory, filter="data")
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content("<!doctype html>")
        page.add_script_tag(path=Path(directory) / "package/dist/mermaid.min.js")
        for name, source in missing.items():
            svg: str = page.evaluate(_DRAW, source)
            svg = svg.replace('style="', 'style="background-color: white; ', 1)
            (_IMAGES / name).write_text(svg + "\n")
        browser.close()


if __name__ == "__main__":
    main()
