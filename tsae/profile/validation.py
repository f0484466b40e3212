"""Strict reading of YAML, and mistakes in it described in one line each."""

import difflib
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

YAML_TAG = "tag:yaml.org,2002:"
# Tags that a configuration or a ledger may hold; `merge` is the key `<<`.
PLAIN_TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge")
MOST_VALUES = 100_000
LONGEST, LONGEST_MESSAGE = 80, 600  # a value in a message, and a message [characters]


def _known_keys(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """Keys allowed in the section of the unknown key at `location`."""
    schema = model.model_json_schema()
    node = schema
    for part in location[:-1]:
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        if "discriminator" in node and part in node["discriminator"]["mapping"]:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        elif isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            node = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), {})
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))


def describe_errors(error: ValidationError, model: Any, where: str) -> str:
    """One line per mistake: file, key, what is wrong, and for a misspelt key the likely one."""
    lines = []
    items = error.errors()
    for item in items:
        place = item["loc"]
        if item["type"] == "too_short" and any(o["loc"][: len(place)] == place for o in items if o["loc"] != place):
            continue  # Pydantic counts a list whose only entry is wrong as empty, and reports the entry too
        key = ".".join(_named(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(
                str(item["loc"][-1]).strip().lower(), _known_keys(model, item["loc"]), n=1
            )
            message = "unknown key" + (f"; did you mean {close[0]!r}?" if close else "")
        elif item["type"] == "missing":
            message = "this key is required"
        elif not isinstance(item["input"], dict | list):
            message += f" (got {_shown(item['input'])})"
        message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]}…"
        lines.append(f"{where}: {key}: {message}" if key else f"{where}: {message}")
    return "\n".join(lines)


def _named(part: int | str) -> str:
    name = str(part)
    return name if name.isprintable() and len(name) <= LONGEST else _shown(part)


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 8 * LONGEST:
        return "an integer of very many digits"
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class _StrictLoader(yaml.SafeLoader):
    """Takes plain data only.

    YAML allows more, by mistake or to do harm: the last of repeated keys wins, tags construct objects, and a few nested
    anchors expand to billions of values.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _check(node, {})
        return node


def _check(node: yaml.Node, sizes: dict[yaml.Node, int]) -> int:
    """Number of values in a node, anchors expanded; `sizes` holds the numbers of nodes seen before."""
    if node in sizes:
        if sizes[node] == 0:
            _refuse("an anchor that contains itself", node)
        return sizes[node]
    sizes[node] = 0
    if node.tag.removeprefix(YAML_TAG) not in PLAIN_TAGS:
        _refuse(f"the tag {node.tag.replace(YAML_TAG, '!!')} is for other programs", node)
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, sizes)
        size += sum(_check(value, sizes) for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check(value, sizes) for value in node.value)
    if size > MOST_VALUES:
        _refuse(f"over {MOST_VALUES} values, with anchors expanded", node)
    sizes[node] = size
    return size


def _check_keys(node: yaml.MappingNode, sizes: dict[yaml.Node, int]) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            _refuse("a key that is not a name", key)
        _check(key, sizes)
        if key.value in seen:
            _refuse(f"the key {key.value!r} is given twice", key)
        if key.value == "__use_yte__":
            _refuse("the key '__use_yte__' would have Snakemake run what the file holds", key)
        seen.add(key.value)


def _refuse(problem: str, node: yaml.Node) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain data without repeated keys.

    Raises:
        ValueError: the file cannot be read, or is not such YAML; the message names the file and the line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path}: not valid YAML: {error.problem}{where}") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # forbidden characters, impossible dates and numbers
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
