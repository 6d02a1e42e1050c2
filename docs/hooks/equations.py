"""Equations become MathML when the site is built: a browser draws it by itself, also offline."""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# What pymdownx.arithmatex leaves: \(...\) in a line, \[...\] on its own.
EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[\[(](?P<latex>.*?)\\[\])]</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with every page's HTML."""
    return EQUATION.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    """What the converter does not know it passes on as it is; here that is an error."""
    tag, latex = found["tag"], html.unescape(found["latex"])
    drawn = convert(latex, display="block" if tag == "div" else "inline")
    try:
        shown = "".join(ElementTree.fromstring(drawn).itertext())
    except ElementTree.ParseError as error:
        raise PluginError(f"equation {latex!r} cannot be drawn: {error}") from error
    if "\\" in shown:
        raise PluginError(f"equation {latex!r} has a command that cannot be drawn: {shown!r}")
    return f'<{tag} class="equation">{drawn}</{tag}>'
