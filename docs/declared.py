"""What the code declares: metrics, figures, keys of the configuration, rules. None of it needs a run."""

import json
import math
import os
import subprocess
from collections.abc import Iterator
from typing import Any

from captions import OF_THE_PAPER
from run import ROOT

from tsae.measure.definitions import Words, declared_metrics, words_in
from tsae.profile import config
from tsae.profile.figures import FIGURES as NEEDS_OF
from tsae.profile.figures import title_of
from tsae.store.declared import docstring
from tsae.store.markdown import markdown_table


def metrics() -> str:
    """Every metric with its definition, by the module that measures it."""
    parts = []
    for module, (definitions, words) in declared_metrics().items():
        summary = docstring(*module.split("/")).splitlines()[0].removesuffix(".")
        rows: list[dict[str, object]] = [
            {"metric": f"`{name}`", "definition": _typeset(definition, words)}
            for name, definition in definitions.items()
        ]
        parts.append(f"**{summary}** ([{module}.py](../tsae/{module}.py))\n\n{markdown_table(rows, others='---')}")
        spelled = [_spell(word, words) for name in definitions for word in words_in(name)]
        parts += ["\n".join(dict.fromkeys(spelled))] if spelled else []
    return "\n\n".join(parts)


def _typeset(definition: str, words: Words) -> str:
    for word in words:
        definition = definition.replace(f"{{{word}}}", f"*{word}*")
    return definition.replace("x_hat", "x̂").replace("^2", "²").replace("|", "\\|")


def _spell(word: str, words: Words) -> str:
    choices = [f"{f'`{part}`' if part else 'nothing'} ({meaning})" for part, meaning in words[word].items()]
    return f"- `{{{word}}}`: {', '.join(choices)}"


def figures() -> str:
    """Every figure of the paper's claims, what it shows, and the claims that it speaks for, in the order of these."""

    def order(figure: str) -> tuple[float, str]:
        claims = NEEDS_OF[figure].claims
        return (int(claims[0][1:]) if claims else math.inf, figure)

    def link(figure: str) -> str:
        path = f"docs/figures/{figure}.png"
        return f"[`{figure}`]({path})" if (ROOT / path).is_file() else f"`{figure}`"

    rows: list[dict[str, object]] = [
        {"figure": link(name), "what it shows": title_of(name), "claim": ", ".join(NEEDS_OF[name].claims)}
        for name in sorted(OF_THE_PAPER, key=order)
    ]
    return markdown_table(rows, others="---")


def _fields(schema: dict[str, Any], node: dict[str, Any], prefix: str) -> Iterator[dict[str, object]]:
    """Every key below a node of the JSON schema, with its type, default and description."""
    for key, field in node["properties"].items():
        name = f"{prefix}{key}"
        described = field
        if "$ref" in field:
            described = schema["$defs"][field["$ref"].rsplit("/", 1)[-1]]
            if described.get("type") == "object":
                yield from _fields(schema, described, f"{name}.")
                continue
        if (union := field if "discriminator" in field else field.get("items", {})) and "discriminator" in union:
            for kind, reference in union["discriminator"]["mapping"].items():
                below = schema["$defs"][reference.rsplit("/", 1)[-1]]
                listed = "[]" if union is not field else ""
                yield from _fields(schema, below, f"{name}{listed} ({kind}).")
            continue
        blocks = field.get("additionalProperties", field.get("patternProperties"))
        if blocks and "enum" not in blocks:
            listed = blocks if "items" in blocks else next(iter(blocks.values()))
            below = schema["$defs"][listed["items"]["$ref"].rsplit("/", 1)[-1]]
            yield from _fields(schema, below, f"{name}.<block>[].")
            continue
        default = "required" if key in node.get("required", []) else f"`{json.dumps(field.get('default'))}`"
        if "const" in field:
            default = f"`{field['const']}`"
        yield {
            "key": f"`{name}`",
            "default": default,
            "meaning": field.get("description", described.get("description", "")),
        }
        for option in field.get("anyOf", ()):  # a section that may be null
            if "$ref" in option:
                yield from _fields(schema, schema["$defs"][option["$ref"].rsplit("/", 1)[-1]], f"{name}.")


def configuration() -> str:
    """Every key of the configuration."""
    schema = json.loads(config.json_schema())
    rows = [{key: str(value).replace("|", "\\|") for key, value in row.items()} for row in _fields(schema, schema, "")]
    return markdown_table([dict(row) for row in rows], others="---")


def rulegraph() -> str:
    """The DAG of rules, as mermaid."""
    command = ["snakemake", "--rulegraph", "mermaid-js", "--forceall"]
    # Without it the order of nodes and edges changes from call to call.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    graph = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout
    return f"```mermaid\n{graph[graph.index('---') :].strip()}\n```"


BLOCKS = (metrics, figures, configuration, rulegraph)
