"""Parse Markdown into nodes that a view builds elements of; HTML in it stays text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import mistune

LONGEST_MARKDOWN: Final = 30_000
"""Characters; longer texts are shown as plain text."""

_DEEPEST = 20
_MOST_NODES = 10_000
# Patterns of the parser try every split of a run of spaces: their time grows with its cube.
_GAP = re.compile(r"[ \t]{300}")
# What may be more than one paragraph of plain words.
_MARKUP = re.compile(r"[\\`*_~\[#>|\n]|https?://|^\s*(?:[-+=]|\d+[.)])")

_LANGUAGE = re.compile(r"[\w+#.-]{0,20}")

_parser = mistune.create_markdown(renderer=None, plugins=["table", "strikethrough", "url"])
# Definitions of links would not be shown at all: they stay text.
_parser.block.rules.remove("ref_link")


def markdown(text: str) -> list[Any] | None:
    """Parse Markdown into nodes: a string, or ``[kind, children, detail?]``.

    HTML in it stays text. Returns None for a text that is too long, too deeply nested or made to
    hold up the parser, which is to be shown as plain text.
    """
    if len(text) > LONGEST_MARKDOWN or _GAP.search(text):
        return None
    if not _MARKUP.search(text):
        return [["paragraph", [text]]]
    try:
        return _Nodes().of(_parser(text), 0)
    except (RecursionError, _TooLarge):
        return None


class _TooLarge(Exception):
    """More nodes, or deeper ones, than a page takes."""


_KINDS = {
    "paragraph": "paragraph",
    "block_text": "inline",
    "emphasis": "emphasis",
    "strong": "strong",
    "strikethrough": "strikethrough",
    "block_quote": "quote",
    "list_item": "item",
    "table_head": "row",
    "table_row": "row",
    "table_body": "body",
    "table": "table",
}


class _Nodes:
    """Makes nodes of mistune's tokens, and counts them."""

    def __init__(self) -> None:
        self._count = 0

    def of(self, tokens: Any, depth: int) -> list[Any]:
        self._count += len(tokens)
        if self._count > _MOST_NODES or depth > _DEEPEST:
            raise _TooLarge
        nodes = [self._node(token, depth) for token in tokens if token["type"] != "blank_line"]
        return [node for node in nodes if node != ""]

    def _node(self, token: dict[str, Any], depth: int) -> Any:
        kind, attrs = token["type"], token.get("attrs") or {}
        children = self.of(token.get("children") or [], depth + 1)
        if kind in _KINDS:
            return [_KINDS[kind], children]
        match kind:
            case "softbreak" | "linebreak":
                return ["break", []]
            case "thematic_break":
                return ["rule", []]
            case "codespan":
                return ["code", [token["raw"]]]
            case "block_code":
                return ["pre", [_code(token, attrs)]]
            case "block_html":
                return ["lines", [token["raw"].removesuffix("\n")]]
            case "heading":
                return ["heading", children, attrs["level"]]
            case "list":
                return ["list", children, attrs.get("start", 1) if attrs["ordered"] else None]
            case "link":
                return ["link", children, attrs["url"]]
            case "image":
                return ["picture", children, attrs["url"]]
            case "table_cell":
                return ["heading_cell" if attrs["head"] else "cell", children]
        # Whatever a later version of the parser knows is shown as text.
        return token.get("raw", ["inline", children])


def _code(token: dict[str, Any], attrs: Mapping[str, Any]) -> str:
    """The text of a block of code, with what stands behind its fence unless it names a language."""
    info, code = str(attrs.get("info") or ""), str(token["raw"]).removesuffix("\n")
    return code if _LANGUAGE.fullmatch(info) else f"{token.get('marker', '')}{info}\n{code}"
