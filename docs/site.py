"""What mkdocs does besides: the order of the pages, and links to files of the repository, which are not on the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ORDER = ["index", "quickstart", "configuration", "data", "routings", "sweeps", "seeds", "cluster", "tracking"]
ORDER += [
    "results",
    "sharing",
    "run-folder",
    "performance",
    "published-code",
    "extending",
    "troubleshooting",
    "security",
    "glossary",
]


def on_config(config: Any) -> Any:
    """All pages, in this order; a page that is not in ORDER comes before the glossary."""
    pages = sorted(path.stem for path in Path(config.docs_dir).glob("*.md"))
    known = {name: place for place, name in enumerate(ORDER)}
    pages = sorted(pages, key=lambda name: known.get(name, len(ORDER) - 1.5))
    config.nav = [{"Overview": "index.md"}, *(f"{name}.md" for name in pages if name != "index")]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """[text](../FILE) → text (`FILE`): a file of the repository."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)
