"""`low, high: ...` in a list of attributes describes both: mkdocstrings takes "high" for a type."""

from __future__ import annotations

import re
from typing import Any

NAMES = re.compile(
    r"<b><code>(?:<[^>]+>)?(?P<first>\w+,)(?:<[^>]+>)?</code></b>\s*\(<code>(?P<rest>.*?)</code>\)"
)
TAG = re.compile(r"<[^>]+>")


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with every page's HTML."""
    return NAMES.sub(_both, content)


def _both(found: re.Match[str]) -> str:
    return f"<b><code>{found['first']} {TAG.sub('', found['rest'])}</code></b>"
