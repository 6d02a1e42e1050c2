"""Links out of `docs/` lead to files that the site does not have: it shows their paths instead."""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)#\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs with every page's source."""

    def path(found: re.Match[str]) -> str:
        folder = posixpath.dirname(page.file.src_uri)
        target = posixpath.normpath(posixpath.join(folder, found["target"]))
        if not target.startswith("../"):
            return found[0]  # inside docs
        shown = f"`{target.removeprefix('../')}`"
        return shown if found["text"].strip("`") in shown else f"{found['text']} ({shown})"

    return LINK.sub(path, markdown)
