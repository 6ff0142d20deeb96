"""Custom kinds against the schemas of their definitions, as the API server would take them."""

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import yaml

from deploy.verify.prerequisite import is_custom
from deploy.verify.rendered import Document, Flaw, Rendered, api_group, title

# Beside the checkout, or beside the folder that holds several.
_PLACES: Final = [parent / "shared" / "crds" for parent in Path(__file__).resolve().parents[2].parents]
MISSING: Final = "needs ../shared/crds"
_NESTED: Final = ("allOf", "anyOf", "oneOf")


@dataclass(frozen=True, slots=True)
class Definition:
    """One version of a custom kind: its schema as published, and as a validator."""

    schema: Document
    validator: jsonschema_rs.Draft202012Validator

    def complaints(self, document: Document) -> Iterator[str]:
        """What the API server would refuse, each with its place."""
        for error in self.validator.iter_errors(with_defaults(document, self.schema)):
            place = ".".join(map(str, error.instance_path)) or "the document"
            yield f"{place}: {_short(error.message)}"


def definitions_folder() -> Path | None:
    """Where the definitions are, if they are there."""
    return next((each for each in _PLACES if each.is_dir()), None)


def custom_fields(overlay: Rendered) -> Iterator[Flaw]:
    """Each document of a custom kind has the fields that its definition has, and no others."""
    for document in overlay.documents:
        if not is_custom(api_group(document)):
            continue
        definition = definition_of(document)
        if definition is not None:
            for complaint in definition.complaints(document):
                yield Flaw(title(document), f"{complaint}: correct the field, see `kubectl explain`")
        elif group_is_stored(api_group(document)):
            yield Flaw(title(document), f"{document.get('apiVersion')} has no such kind: correct apiVersion or kind")


RULES: Final = (custom_fields,)


def unchecked(overlay: Rendered) -> list[str]:
    """Kinds of groups that no stored definition is of."""
    groups = {(api_group(each), str(each.get("kind"))) for each in overlay.documents}
    return sorted(f"{kind}.{group}" for group, kind in groups if is_custom(group) and not group_is_stored(group))


def definition_of(document: Document) -> Definition | None:
    """The definition of a document's kind and version."""
    return _definition(api_group(document), str(document.get("kind")), str(document["apiVersion"]).rpartition("/")[2])


@functools.cache
def group_is_stored(group: str) -> bool:
    """Whether the folder has definitions of this API group."""
    folder = definitions_folder()
    return folder is not None and any(folder.glob(f"*.{group}.yaml"))


@functools.cache
def _definition(group: str, kind: str, version: str) -> Definition | None:
    folder = definitions_folder()
    if folder is None:
        return None
    for path in sorted(folder.glob(f"{kind.lower()}*.{group}.yaml")):
        spec = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["spec"]
        if spec["names"]["kind"] != kind:
            continue
        for each in spec["versions"]:
            if each["name"] == version and each.get("served", True):
                schema = each["schema"]["openAPIV3Schema"]
                return Definition(schema, jsonschema_rs.Draft202012Validator(as_json_schema(schema)))
    return None


def as_json_schema(schema: Any, *, closed: bool = True) -> Any:
    """A definition's schema in JSON Schema's words: unknown fields are errors, and some integers may be text."""
    if not isinstance(schema, dict):
        return schema
    result = {key: value for key, value in schema.items() if key not in ("format", "default", "nullable")}
    for key in _NESTED:
        if key in schema:
            # These only narrow what stands around them, so that they close nothing.
            result[key] = [as_json_schema(each, closed=False) for each in schema[key]]
    if "not" in schema:
        result["not"] = as_json_schema(schema["not"], closed=False)
    if isinstance(schema.get("items"), dict):
        result["items"] = as_json_schema(schema["items"], closed=closed)
    if "properties" in schema:
        result["properties"] = {
            name: as_json_schema(each, closed=closed) for name, each in schema["properties"].items()
        }
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = as_json_schema(schema["additionalProperties"], closed=closed)
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    elif schema.get("nullable") and isinstance(schema.get("type"), str):
        result["type"] = [schema["type"], "null"]
    if closed and schema.get("properties") and not _open(schema):
        result["additionalProperties"] = False
    return result


def with_defaults(document: Any, schema: Any) -> Any:
    """A document as it is stored: fields that have a default have it."""
    if isinstance(document, dict):
        properties = schema.get("properties") or {}
        given = {
            name: copy.deepcopy(each["default"])
            for name, each in properties.items()
            if name not in document and "default" in each
        }
        others = schema.get("additionalProperties")
        others = others if isinstance(others, dict) else {}
        return {
            name: with_defaults(value, properties.get(name, others)) for name, value in {**given, **document}.items()
        }
    if isinstance(document, list) and isinstance(schema.get("items"), dict):
        return [with_defaults(each, schema["items"]) for each in document]
    return document


def _open(schema: Document) -> bool:
    return bool(schema.get("x-kubernetes-preserve-unknown-fields")) or "additionalProperties" in schema


def _short(message: str) -> str:
    """A message may quote the whole object."""
    return message if len(message) <= 300 else f"... {message[-250:]}"
