"""Prose from wikitext."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import mwparserfromhell
from mwparserfromhell.definitions import is_visible
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

TAIL_SECTIONS = {
    "bibliography",
    "citations",
    "external links",
    "footnotes",
    "further reading",
    "notes",
    "notes and references",
    "references",
    "see also",
    "sources",
    "works cited",
}
# Templates that are part of a sentence, and the position of the argument they show. All others are dropped.
SHOWN_ARGUMENT = {
    "lang": -1,
    "nihongo": 0,
    "nowrap": 0,
    "quote": 0,
    "small": 0,
    "smaller": 0,
    "transl": -1,
    "vanchor": 0,
}
CONVERT_RANGES = {"-", "\N{EN DASH}", "and", "and(-)", "by", "or", "to", "to(-)", "x"}
DASHES = {
    "mdash": "\N{EM DASH}",
    "mdashb": "\N{EM DASH}",
    "ndash": "\N{EN DASH}",
    "snd": " \N{EN DASH} ",
    "snds": " \N{EN DASH} ",
    "spaced ndash": " \N{EN DASH} ",
}
# In addition to those that the parser hides.
HIDDEN_TAGS = {"ref", "references", "table"}
HIDDEN_LINK = re.compile(r"\s*(?:(?i:file|image|media|category)|[a-z]{2,3}(?:-[a-z]+)*)\s*:")


def strip_wikitext(text: str) -> str:
    """Prose of an article as readers see it, without references, tables, pictures, formulas and tail sections."""
    visible = "".join(_visible(_without_tail_sections(mwparserfromhell.parse(text, skip_style_tags=True))))
    visible = re.sub(r"'{2,}|__[A-Z]+__", "", visible)
    # Remains of "(pronunciation; Greek: ...)" and of a unit before a comma, once their templates are gone.
    visible = re.sub(r"\(\s*(?:[,;:]\s*)+", "(", visible)
    visible = re.sub(r"[ \t\xa0]*\([\s,;:]*\)", "", visible)
    visible = re.sub(r",(?:\s*,)+", ",", visible)
    visible = re.sub(r"[ \t\xa0]+(?=[,;)]|\.(?:\s|$))", "", visible)
    visible = re.sub(r"[ \t\xa0]+", " ", visible)
    visible = re.sub(r" *\n *", "\n", visible)
    return re.sub(r"\n{3,}", "\n\n", visible).strip()


def _without_tail_sections(code: Wikicode) -> Iterator[Any]:
    skipped_level: int | None = None
    for node in code.nodes:
        if isinstance(node, Heading):
            if skipped_level is not None and node.level <= skipped_level:
                skipped_level = None
            if skipped_level is None and node.title.strip().lower() in TAIL_SECTIONS:
                skipped_level = node.level
        if skipped_level is None:
            yield node


def _visible(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        match node:
            case Text():
                yield node.value
            case HTMLEntity():
                yield node.normalize()
            case Heading():
                yield from _visible(node.title.nodes)
            case Wikilink() if not HIDDEN_LINK.match(str(node.title)):
                shown = node.title if node.text is None else node.text
                yield "".join(_visible(shown.nodes)).removeprefix(":")
            case ExternalLink() if node.title is not None:
                yield from _visible(node.title.nodes)
            case Tag(tag="br" | "hr"):
                yield "\n"
            case Tag() if node.contents is not None and _shows_contents(str(node.tag).strip().lower()):
                yield from _visible(node.contents.nodes)
            case Template():
                yield from _visible_arguments(node)


def _shows_contents(tag: str) -> bool:
    return tag not in HIDDEN_TAGS and is_visible(tag)


def _visible_arguments(template: Template) -> Iterator[str]:
    arguments = [parameter.value for parameter in template.params if not parameter.showkey]
    name = str(template.name).strip().lower()
    if name in SHOWN_ARGUMENT and arguments:
        yield from _visible(arguments[SHOWN_ARGUMENT[name]].nodes)
    elif name == "convert" and len(arguments) > 1:
        # A value and its unit, or a range of values: {{convert|3|km|mi}}, {{convert|3|to|5|km|mi}}.
        n_shown = 4 if str(arguments[1]) in CONVERT_RANGES else 2
        yield " ".join(str(argument) for argument in arguments[:n_shown])
    elif name in DASHES:
        yield DASHES[name]
