"""The table of metrics, from what the modules that measure them declare."""

from tsae.measure.metrics import Words, declared_metrics, words_in
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


BLOCKS = (metrics,)
