"""Definitions of all metrics by name, gathered from the modules that measure them.

A module declares `METRICS`: literal definitions by name, with the unit in brackets where there is one. A name may have
words in braces. `METRIC_WORDS` lists what may stand for each word in the name, and what it reads as in the definition,
so `"feature_{rows}_similar"` is a metric per kind of rows.

Definitions are read without importing the modules, since checks of a configuration must not wait for torch.
"""

import itertools
import re
from collections.abc import Iterator, Mapping

from tsae.store.declared import declared

# Cosine similarities and shares of mass at which shares are reported.
THRESHOLDS = tuple(step / 20 for step in range(21))

FOLDERS = ("measure", "phrases")
Words = Mapping[str, Mapping[str, str]]


def declared_metrics() -> dict[str, tuple[dict[str, str], Words]]:
    """Module, such as `measure/loss` -> its definitions as written, and their words."""
    return {
        f"{folder}/{module}": (definitions, declared(folder, "METRIC_WORDS").get(module, {}))
        for folder in FOLDERS
        for module, definitions in declared(folder, "METRICS").items()
    }


def words_in(name: str) -> list[str]:
    """The words in braces of a name as declared, in order."""
    return re.findall(r"{(\w+)}", name)


def spelled(name: str, definition: str, words: Words) -> Iterator[tuple[str, str]]:
    """The names and definitions for which a declared name stands.

    Raises:
        ValueError: `METRIC_WORDS` lacks a word of the name.
    """
    in_name = words_in(name)
    if unknown := [word for word in in_name if word not in words]:
        raise ValueError(f"metric {name}: METRIC_WORDS says nothing of {unknown[0]}")
    for parts in itertools.product(*(words[word].items() for word in in_name)):
        replaced, said = ({word: pair[i] for word, pair in zip(in_name, parts, strict=True)} for i in (0, 1))
        yield name.format_map(replaced), definition.format_map(said)


def gather(declarations: Mapping[str, tuple[Mapping[str, str], Words]]) -> dict[str, str]:
    """Definitions by name from the declarations of modules.

    Raises:
        ValueError: a name is declared twice; the message names the modules.
    """
    found: dict[str, str] = {}
    declared_in: dict[str, str] = {}
    for module, (definitions, words) in declarations.items():
        for name, definition in definitions.items():
            for metric, meaning in spelled(name, definition, words):
                if metric in found:
                    raise ValueError(f"metric {metric}: {declared_in[metric]} and {module} declare it; rename one")
                found[metric], declared_in[metric] = meaning, module
    return found


DEFINITIONS = gather(declared_metrics())


def is_share(metric: str) -> bool:
    """Whether a metric is a share of counted things, by its definition."""
    return DEFINITIONS[metric].startswith("share of")
