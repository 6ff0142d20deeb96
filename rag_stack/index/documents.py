"""Source files -> documents: text, Markdown and JSON Lines. What cannot be read is named, never lost silently."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from rag_stack.errors import DocumentError, IndexVersionError
from rag_stack.index.format import Chunking, Skipped
from rag_stack.index.sections import TextFormat
from rag_stack.index.spec import IndexSpec, Source
from rag_stack.types import AttributeValue

_MARKDOWN: Final = frozenset({".md", ".markdown"})
_BINARY: Final = "is binary: it holds NUL bytes"
# OpenAI's limits for a file's attributes.
_MAX_ATTRIBUTES: Final = 16
_MAX_KEY_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Document:
    """A source text. Its attributes hold its `path` in the source folder and its `filename`, besides its own.

    A `chunking` of its own takes the place of the spec's.
    """

    document_id: str
    text: str
    title: str
    uri: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    text_format: TextFormat = "text"
    chunking: Chunking | None = None

    @property
    def digest(self) -> str:
        """Of everything that a search can find or give back."""
        chunking = self.chunking.model_dump() if self.chunking else None
        content = [self.text, self.title, self.uri, sorted(self.attributes.items()), self.text_format, chunking]
        return "sha256:" + hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Documents:
    """What a source holds, in the order of its paths, and what could not be read of it."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


def read_documents(spec: IndexSpec) -> Documents:
    """Read a spec's source. Blocking.

    With `on_error: fail`, raises DocumentError at the first document that cannot be read; with `skip` they are listed.
    Raises IndexVersionError when there is nothing to index.
    """
    source = spec.source
    documents: dict[str, Document] = {}
    skipped: list[Skipped] = []
    for result in _read_all(spec):
        if isinstance(result, Document) and result.document_id in documents:
            result = Skipped(document=_where(result), reason="its id was used by an earlier document")
        if isinstance(result, Document):
            documents[result.document_id] = result
        elif spec.on_error == "fail":
            raise DocumentError(
                f"cannot read {result.document!r} in {source.folder!r}: {result.reason}; mend or exclude it, or "
                "set `on_error: skip` to leave such documents out"
            )
        else:
            skipped.append(result)
    if not documents:
        listed = "; ".join(f"{each.document}: {each.reason}" for each in skipped[:5])
        raise IndexVersionError(
            f"no documents in {source.folder!r} that match {list(source.include)}: "
            + (f"{len(skipped)} could not be read ({listed})" if skipped else "check the spec's folder and patterns")
        )
    return Documents(tuple(documents.values()), tuple(skipped))


def _read_all(spec: IndexSpec) -> Iterator[Document | Skipped]:
    source = spec.source
    paths = _paths(source)
    metadata: dict[str, Mapping[str, Any]] = {}
    if source.metadata is not None:
        for where, row in _rows(Path(source.folder) / source.metadata, name=source.metadata):
            if isinstance(row, str):
                yield Skipped(document=where, reason=row)
            elif row.get("path") not in paths:
                yield Skipped(document=where, reason=f"names the file {row.get('path')!r}, which is not in the source")
            else:
                metadata[cast(str, row["path"])] = row
    for path in paths:
        if source.format == "jsonl" or (source.format == "auto" and path.endswith(".jsonl")):
            for where, row in _rows(Path(source.folder) / path, name=path):
                yield Skipped(document=where, reason=row) if isinstance(row, str) else _from_row(spec, path, where, row)
        else:
            yield _from_file(spec, path, metadata.get(path, {}))


def _paths(source: Source) -> dict[str, None]:
    """The source's files relative to its folder, sorted."""
    if not Path(source.folder).is_dir():
        raise IndexVersionError(f"the source folder {source.folder!r} does not exist; create it or mend the spec")
    try:
        excluded = {path for pattern in source.exclude for path in Path(source.folder).glob(pattern)}
        found = {path for pattern in source.include for path in Path(source.folder).glob(pattern)} - excluded
    except (ValueError, NotImplementedError) as exc:
        raise IndexVersionError(f"the patterns {[*source.include, *source.exclude]} are not valid: {exc}") from exc
    relative = (path.relative_to(Path(source.folder)).as_posix() for path in found if path.is_file())
    return dict.fromkeys(sorted(path for path in relative if path != source.metadata))


def _from_file(spec: IndexSpec, path: str, row: Mapping[str, Any]) -> Document | Skipped:
    try:
        text = _text(Path(spec.source.folder) / path)
        known = {"path", "title", "uri", "attributes"}
        return _document(spec, path, path.rpartition("/")[2], text, _fields(row, known), document_id=_id(path))
    except ValueError as exc:
        return Skipped(document=path, reason=str(exc))


def _from_row(spec: IndexSpec, path: str, where: str, row: Mapping[str, Any]) -> Document | Skipped:
    try:
        fields = _fields(row, {"id", "title", "text", "uri", "attributes"})
        for required in ("id", "text"):
            if required not in fields:
                raise ValueError(f"lacks {required!r}")
        name = fields["id"]
        return _document(spec, path, name, _checked(fields["text"]), fields, document_id=_id(f"{path}#{name}"))
    except ValueError as exc:
        return Skipped(document=where, reason=str(exc))


def _document(
    spec: IndexSpec, path: str, name: str, text: str, fields: Mapping[str, Any], *, document_id: str
) -> Document:
    stem, _, suffix = name.rpartition(".")
    uri = fields.get("uri") or spec.uri.format(path=path, stem=stem or name, name=name, id=document_id)
    return Document(
        document_id=document_id,
        text=text,
        title=fields.get("title", "") if "id" in fields else fields.get("title") or name,
        uri=uri,
        attributes=_attributes({**spec.attributes, **fields.get("attributes", {})}) | {"path": path, "filename": name},
        text_format=_format(spec.source, suffix),
    )


def _format(source: Source, suffix: str) -> TextFormat:
    if source.format in ("text", "markdown"):
        return source.format
    return "markdown" if f".{suffix.lower()}" in _MARKDOWN else "text"


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if b"\0" in data:
            raise ValueError(_BINARY)
        return _checked(data.decode("utf-8-sig"))
    except OSError as exc:
        raise ValueError(exc.strerror or str(exc)) from exc
    except UnicodeDecodeError as exc:
        raise ValueError(f"is not UTF-8 (byte {exc.start}); convert it") from exc


def _checked(text: str) -> str:
    if "\0" in text:
        raise ValueError(_BINARY)
    if not text.strip():
        raise ValueError("is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ValueError(f"holds half a surrogate pair at character {exc.start}") from exc
    return text


def _rows(path: Path, *, name: str) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """Each line of a JSON Lines file: its place, and its object or what is wrong with it."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as exc:
        yield name, exc.strerror or str(exc)
        return
    for number, line in enumerate(lines, start=1):
        where = f"{name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as exc:
            yield where, f"is not a JSON line: {exc}"
            continue
        yield where, row if isinstance(row, dict) else f"is a JSON {type(row).__name__}, expected an object"


def _fields(row: Mapping[str, Any], known: set[str]) -> Mapping[str, Any]:
    unknown = sorted(set(row) - known)
    if unknown:
        raise ValueError(f"has the unknown fields {unknown}; known are {sorted(known)}")
    for key, value in row.items():
        expected: type = dict if key == "attributes" else str
        if not isinstance(value, expected):
            raise ValueError(f"{key!r} must be {expected.__name__}, got {type(value).__name__}")
    if row.get("id") == "":
        raise ValueError("'id' is empty")
    return row


def _attributes(given: Mapping[str, Any]) -> dict[str, AttributeValue]:
    if len(given) > _MAX_ATTRIBUTES:
        raise ValueError(f"has {len(given)} attributes, at most {_MAX_ATTRIBUTES} are kept")
    for key, value in given.items():
        if not 1 <= len(key) <= _MAX_KEY_CHARS:
            raise ValueError(f"attribute names have 1 to {_MAX_KEY_CHARS} characters, got {key!r}")
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"attribute {key!r} must be a string, a finite number or a boolean, got {value!r}")
    return {k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in given.items()}


def _id(address: str) -> str:
    return "file-" + hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _where(document: Document) -> str:
    return f"{document.attributes['path']} ({document.attributes['filename']})"
