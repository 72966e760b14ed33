"""`make reference`: write the pages anew."""

from __future__ import annotations

from ..documents import ROOT
from . import PAGES

for path, page in PAGES.items():
    (ROOT / path).write_text(page())
    print(f"wrote {path}")
