"""
`make docs`: the pages of the site, gathered into one directory for the generator.

The repository stays as it is: README.md becomes the first page, and all other files keep their places, so that links
between them hold. Only diagrams become pictures, so that no page fetches a program from elsewhere to draw them.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from .diagrams import drawn
from .documents import ROOT
from .links import links, local

__all__ = ["gather", "pages"]

_FIRST = "README.md"
_INTRO = {ROOT / "docs/decisions": "What was decided, and why; each on half a page. The order is that of time.\n\n"}


def pages() -> list[Path]:
    """Return every document of the repository that the site has."""
    return [ROOT / _FIRST, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def gather(directory: Path) -> None:
    """Write the pages and every file that they link to; what the directory holds is removed first."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for page in pages():
        text = drawn(page, page.read_text())
        for _, link in links(text):
            found = local(page, link)
            if found is not None:
                _bring(found[0], directory)
        name = "index.md" if page.name == _FIRST else str(page.relative_to(ROOT))
        _write(directory / name, _relinked(page, text))


def _bring(linked: Path, directory: Path) -> None:
    """Copy a file that a page links to; of a directory, its files, with a page that lists them."""
    if linked.is_dir():
        files = sorted(each for each in linked.iterdir() if each.is_file())
        lines = [f"- [{_title(each)}]({each.name})\n" for each in files]
        heading = f"# {linked.name.capitalize()}\n\n{_INTRO.get(linked, '')}"
        _write(directory / linked.relative_to(ROOT) / "index.md", heading + "".join(lines))
        for each in files:
            _bring(each, directory)
    elif linked.suffix != ".md":
        target = directory / linked.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(linked, target)


def _title(file: Path) -> str:
    return file.read_text().partition("\n")[0].lstrip("# ") if file.suffix == ".md" else file.name


def _relinked(page: Path, text: str) -> str:
    """Return a page whose links lead to the names that pages have on the site."""
    for _, link in links(text):
        found = local(page, link)
        if found is not None and found[0].is_dir():
            text = text.replace(f"]({link})", f"]({link.rstrip('/')}/index.md)")
    return re.sub(r"(\]\((?:\.\./)*)README\.md", r"\1index.md", text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    gather(Path(sys.argv[1]))
