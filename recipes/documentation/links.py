"""Hook of MkDocs: a link to a file outside of ``docs/`` becomes the file's path in the repository, as the site holds pages of ``docs/`` alone.

mkdocs.yml names this file. A link to a file that is not there stops the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

OUTWARD = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The text of a page, in which ``[CARD.md](../src/CARD.md)`` reads ``src/CARD.md``. PluginError for a file that is not there."""
    docs = Path(config["docs_dir"])

    def named(link: re.Match[str]) -> str:
        text, target = link.groups()
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        if not inside.startswith("../"):
            return link.group()
        path = inside.removeprefix("../")
        if not (docs.parent / path).exists():
            raise PluginError(f"{page.file.src_uri} has a link to {target}, which is not there")
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    return OUTWARD.sub(named, markdown)
