"""Source files -> documents, one at a time. What cannot be read is named, never lost silently."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from rag_stack.errors import DocumentError
from rag_stack.index.format import Chunking, Skipped
from rag_stack.index.html import to_markdown
from rag_stack.index.pdf import to_text
from rag_stack.index.rows import FIELDS, Row, json_rows, parquet_rows, too_large
from rag_stack.index.sections import TextFormat
from rag_stack.index.source import SourceFile, SourceTree, open_source
from rag_stack.index.spec import AUTO, MAX_DOCUMENT_BYTES, IndexSpec, SourceFormat
from rag_stack.types import AttributeValue

_FORMATS: Final[Mapping[str, SourceFormat]] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
_BINARY: Final = "is binary: it holds NUL bytes"
# OpenAI's limits for a file's attributes.
_MAX_ATTRIBUTES: Final = 16
_MAX_KEY_CHARS: Final = 64
_MAX_NUMBER: Final = sys.float_info.max
_PREFIX: Final = "file-"


@dataclass(frozen=True, slots=True)
class Document:
    """A source text. Its attributes hold its `path` in the source and its `filename`, besides its own.

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


Results: TypeAlias = Iterator[Document | Skipped]


@dataclass(frozen=True, slots=True)
class Documents:
    """What a source holds, in the order of its paths, and what could not be read of it."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source, sorted by path, and what its metadata file says that is no use."""

    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...] = ()


def read_documents(spec: IndexSpec) -> Documents:
    """Read a spec's source into memory. Raises as `iter_documents` does. Blocking."""
    results = list(iter_documents(spec))
    return Documents(
        tuple(each for each in results if isinstance(each, Document)),
        tuple(each for each in results if isinstance(each, Skipped)),
    )


def iter_documents(spec: IndexSpec) -> Results:
    """A spec's source, document by document in the order of its paths; not more than one of them is held. Blocking.

    What cannot be read comes as Skipped. Raises as `open_source(...).files()` does.
    """
    tree = open_source(spec.source)
    listing = list_source(spec, tree)
    yield from listing.skipped
    for file in listing.files:
        yield from read_file(spec, tree, file)


def list_source(spec: IndexSpec, tree: SourceTree) -> Listing:
    """What there is to read. Blocking. Raises as `SourceTree.files` does."""
    files = {file.path: file for file in tree.files() if file.path != spec.source.metadata}
    skipped: list[Skipped] = []
    for where, row in _described(spec, tree):
        if isinstance(row, str):
            skipped.append(Skipped(document=where, reason=row))
        elif row.get("path") not in files:
            reason = f"names the file {row.get('path')!r}, which is not in the source"
            skipped.append(Skipped(document=where, reason=reason))
        else:
            files[row["path"]] = replace(files[row["path"]], described=row)
    return Listing(tuple(files.values()), tuple(skipped))


def read_file(spec: IndexSpec, tree: SourceTree, file: SourceFile) -> Results:
    """The documents of a file; one, or one a row, read as they are asked for. Blocking.

    Raises ArtifactError when a server fails; all else that goes wrong is Skipped, with the reason.
    """
    format_ = _format(spec.source.format, file.path)
    where = file.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        if where != file.path:
            raise DocumentError("has a name that is not UTF-8; rename it")
        if format_ in ("jsonl", "parquet"):
            yield from _from_rows(spec, tree, file, format_)
        else:
            yield _from_file(spec, tree, file)
    except DocumentError as exc:
        yield Skipped(document=where, reason=exc.message)
    except OSError as exc:
        yield Skipped(document=where, reason=exc.strerror or str(exc))


def parse(
    data: bytes,
    *,
    filename: str,
    format: SourceFormat = AUTO,  # noqa: A002 - the spec's word
    path: str | None = None,
    document_id: str | None = None,
    title: str = "",
    uri: str = "",
    attributes: Mapping[str, Any] | None = None,
    chunking: Chunking | None = None,
    max_bytes: int = MAX_DOCUMENT_BYTES,
) -> Document:
    """A document from the bytes of one file. Raises DocumentError, whose message is the reason. Blocking.

    `path` is the filename where it is not given, and the id follows from the path. Without a `title` it is the page's
    own, for HTML, or else the filename. The attributes get `path` and `filename`.
    """
    if len(data) > max_bytes:
        raise DocumentError(too_large(len(data), max_bytes))
    if not data.strip():
        raise DocumentError("is empty")
    path = filename if path is None else path
    text, text_format, own_title = _converted(data, _format(format, filename), max_chars=max_bytes)
    return Document(
        document_id=document_id or _id(path),
        text=_checked(text),
        title=title or own_title or filename,
        uri=uri,
        attributes=_attributes(attributes or {}) | {"path": path, "filename": filename},
        text_format=text_format,
        chunking=chunking,
    )


def _converted(data: bytes, format_: SourceFormat, *, max_chars: int) -> tuple[str, TextFormat, str]:
    """The text, how it is marked up, and the title that it brings."""
    match format_:
        case "html":
            text, title = to_markdown(data)
            return text, "markdown", title
        case "pdf":
            return to_text(data, max_chars=max_chars), "text", ""
        case "jsonl" | "parquet":
            raise DocumentError(
                "holds many documents, one a row, but one is expected; give each as a file of its own, or build an "
                "index from the folder that holds it"
            )
        case _:
            return _decoded(data), "markdown" if format_ == "markdown" else "text", ""


def _format(wanted: SourceFormat, path: str) -> SourceFormat:
    name = path.rpartition("/")[2]
    return wanted if wanted != AUTO else _FORMATS.get("." + name.rpartition(".")[2].lower(), "text")


def _from_file(spec: IndexSpec, tree: SourceTree, file: SourceFile) -> Document:
    if file.size_bytes > spec.max_document_bytes:
        raise DocumentError(too_large(file.size_bytes, spec.max_document_bytes))
    name = file.path.rpartition("/")[2]
    fields = _fields(file.described, ("path", "title", "uri", "attributes"))
    return parse(
        tree.read(file.path),
        filename=name,
        format=spec.source.format,
        path=file.path,
        title=fields.get("title", ""),
        uri=fields.get("uri") or _uri(spec, file.path, name, _id(file.path)),
        attributes={**spec.attributes, **fields.get("attributes", {})},
        max_bytes=spec.max_document_bytes,
    )


def _from_rows(spec: IndexSpec, tree: SourceTree, file: SourceFile, format_: SourceFormat) -> Results:
    seen: set[bytes] = set()
    with tree.open(file.path) as content:
        for number, row in _rows(spec, content, format_):
            try:
                document = _from_row(spec, file.path, row)
            except DocumentError as exc:
                yield Skipped(document=f"{file.path}:{number}", reason=exc.message)
                continue
            # A quarter of the memory that the ids would take.
            key = bytes.fromhex(document.document_id.removeprefix(_PREFIX))
            if key in seen:
                name = f"{file.path} ({document.attributes['filename']})"
                yield Skipped(document=name, reason="its id was used by an earlier document")
                continue
            seen.add(key)
            yield document


def _rows(spec: IndexSpec, content: Any, format_: SourceFormat) -> Iterator[Row]:  # noqa: ANN401 - a binary file
    if format_ == "jsonl":
        return json_rows(content, max_bytes=spec.max_document_bytes)
    return parquet_rows(content, columns=spec.source.attribute_columns)


def _from_row(spec: IndexSpec, path: str, row: Mapping[str, Any] | str) -> Document:
    if isinstance(row, str):
        raise DocumentError(row)
    columns = spec.source.attribute_columns
    fields = _fields({key: value for key, value in row.items() if key not in columns}, FIELDS)
    for required in ("id", "text"):
        if required not in fields:
            raise DocumentError(f"lacks {required!r}")
    name, text = fields["id"], _checked(fields["text"])
    size_bytes = len(text.encode())
    if size_bytes > spec.max_document_bytes:
        raise DocumentError(too_large(size_bytes, spec.max_document_bytes))
    document_id = _id(f"{path}#{name}")
    extra = {key: row[key] for key in columns if key in row}
    return Document(
        document_id=document_id,
        text=text,
        title=fields.get("title", ""),
        uri=fields.get("uri") or _uri(spec, path, name, document_id),
        attributes=_attributes({**spec.attributes, **extra, **fields.get("attributes", {})})
        | {"path": path, "filename": name},
        text_format="markdown" if _format(AUTO, name) == "markdown" else "text",
    )


def _described(spec: IndexSpec, tree: SourceTree) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """The rows of the source's metadata file, and where each stands."""
    path = spec.source.metadata
    if path is None:
        return
    try:
        with tree.open(path) as content:
            for number, row in json_rows(content, max_bytes=spec.max_document_bytes):
                yield f"{path}:{number}", row
    except (DocumentError, OSError) as exc:
        yield path, str(exc)


def _uri(spec: IndexSpec, path: str, name: str, document_id: str) -> str:
    return spec.uri.format(path=path, stem=name.rpartition(".")[0] or name, name=name, id=document_id)


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DocumentError("is UTF-16; convert it to UTF-8")
    if b"\0" in data:
        raise DocumentError(_BINARY)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DocumentError(f"is not UTF-8 (byte {exc.start}); convert it") from exc


def _checked(text: str) -> str:
    if "\0" in text:
        raise DocumentError(_BINARY)
    if not text.strip():
        raise DocumentError("is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise DocumentError(f"holds half a surrogate pair at character {exc.start}") from exc
    return text


def _fields(row: Mapping[str, Any], known: tuple[str, ...]) -> Mapping[str, Any]:
    unknown = sorted(set(row) - set(known))
    if unknown:
        raise DocumentError(f"has the unknown fields {unknown}; known are {sorted(known)}")
    checked = dict(row)
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        checked["id"] = str(row["id"])
    for key, value in checked.items():
        expected: type = dict if key == "attributes" else str
        if not isinstance(value, expected):
            raise DocumentError(f"{key!r} must be {expected.__name__}, got {type(value).__name__}")
    if checked.get("id") == "":
        raise DocumentError("'id' is empty")
    return checked


def _attributes(given: Mapping[str, Any]) -> dict[str, AttributeValue]:
    if len(given) > _MAX_ATTRIBUTES:
        raise DocumentError(f"has {len(given)} attributes, at most {_MAX_ATTRIBUTES} are kept")
    return {key: _attribute(key, value) for key, value in given.items()}


def _attribute(key: str, value: object) -> AttributeValue:
    if not 1 <= len(key) <= _MAX_KEY_CHARS:
        raise DocumentError(f"attribute names have 1 to {_MAX_KEY_CHARS} characters, got {key!r}")
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) <= _MAX_NUMBER:
        return float(value)
    if not isinstance(value, str):
        raise DocumentError(f"attribute {key!r} must be a string, a finite number or a boolean, got {value!r}")
    return value


def _id(address: str) -> str:
    return _PREFIX + hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:24]
