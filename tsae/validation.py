"""Files that people write: read strictly, and their mistakes described one line each."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError


def _known_keys(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """Keys allowed beside the unknown one at `location`, for the suggestion in the error message."""
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
    """One line per mistake: the file, the key, what is wrong, and for a misspelt key the one that was probably meant."""
    lines = []
    items = error.errors()
    for item in items:
        place = item["loc"]
        if item["type"] == "too_short" and any(o["loc"][: len(place)] == place for o in items if o["loc"] != place):
            continue  # a list whose only entry is wrong counts as empty; the mistake in the entry says enough
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(item["loc"][-1]), _known_keys(model, item["loc"]), n=1)
            message = "unknown key" + (f"; did you mean {close[0]!r}?" if close else "")
        elif item["type"] == "missing":
            message = "this key is required"
        elif not isinstance(item["input"], dict | list):
            message += f" (got {item['input']!r})"
        lines.append(f"{where}: {key}: {message}" if key else f"{where}: {message}")
    return "\n".join(lines)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, where YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Read a YAML file in which no mapping has a key twice.

    Raises:
        ValueError: it cannot be read, or is not such YAML; the message names the file and the line.
    """
    try:
        return yaml.load(path.read_text(), _StrictLoader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
