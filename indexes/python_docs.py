"""Exports the documentation that comes with Python as text files: `python indexes/python_docs.py OUT_DIR`.

The language reference is what `help("with")` prints, from `pydoc_data`; the library is the docstrings of well-known
modules. `documents.jsonl` beside the files gives each its title, its page on docs.python.org and its attributes.
"""

import argparse
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from types import ModuleType
from typing import Any

DOCS = "https://docs.python.org/3.11"

# The page that defines each label; in the HTML the label is the anchor.
LABELS = {
    "reference/simple_stmts": (
        "assert assignment augassign break continue del global import nonlocal pass raise return yield"
    ),
    "reference/compound_stmts": "async class compound else for function if try while with",
    "reference/expressions": (
        "atom-identifiers atom-literals attribute-references await binary bitwise booleans calls comparisons "
        "conversions dict exprlists in lambda lists operator-summary power shifting slicings subscriptions unary"
    ),
    "reference/lexical_analysis": "floating id-classes identifiers imaginary integers numbers strings",
    "reference/datamodel": (
        "attribute-access callable-types context-managers customization numeric-types objects sequence-types "
        "specialnames types"
    ),
    "reference/executionmodel": "dynamic-features exceptions execmodel naming",
    "library/stdtypes": (
        "bltin-code-objects bltin-ellipsis-object bltin-null-object bltin-type-objects specialattrs string-methods "
        "truth typesfunctions typesmapping typesmethods typesmodules typesseq typesseq-mutable"
    ),
    "library/pdb": "debugger",
    "library/string": "formatstrings",
}

# Modules that are asked about, whose import does nothing else, and whose docstrings can stand for their page.
MODULES = """
    abc argparse asyncio base64 bisect calendar collections concurrent.futures configparser contextlib copy csv
    dataclasses datetime enum fnmatch fractions functools getpass glob gzip hashlib heapq hmac html inspect io ipaddress
    itertools json logging math mimetypes operator os os.path pathlib pickle platform pprint queue random re secrets
    select shelve shlex shutil signal socket sqlite3 stat statistics string struct subprocess sys tempfile textwrap
    threading time timeit tomllib traceback types typing unicodedata urllib.parse urllib.request uuid warnings weakref
    xml.etree.ElementTree zipfile zlib
"""

# The largest modules are cut to their functions and classes, without methods: they would be half of the corpus.
_WITHOUT_METHODS = frozenset({"asyncio", "io", "logging", "socket", "uuid"})
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def export(out: Path) -> int:
    """Write the corpus into a folder; how many documents that are."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for path, title, uri, attributes, text in [*_reference(), *_library()]:
        (out / path).write_text(text, encoding="utf-8")
        rows.append({"path": path, "title": title, "uri": uri, "attributes": attributes})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "documents.jsonl").write_text(lines, encoding="utf-8")
    return len(rows)


def _reference() -> Iterator[tuple[str, str, str, dict[str, str], str]]:
    pages = {label: page for page, labels in LABELS.items() for label in labels.split()}
    for label, text in sorted(topics.topics.items()):
        if label == "compound":
            continue  # it repeats the topics with, try, if, for, while, function and class word for word
        title = text.lstrip("\n").partition("\n")[0]
        yield f"{label}.txt", title, f"{DOCS}/{pages[label]}.html#{label}", {"kind": "reference", "topic": label}, text


def _library() -> Iterator[tuple[str, str, str, dict[str, str], str]]:
    for name in MODULES.split():
        text = "\n".join(_module(name, importlib.import_module(name)))
        text = text.replace(sys.executable, "/usr/local/bin/python")  # a default in platform's signatures
        uri = f"{DOCS}/library/{name.lower()}.html"
        yield f"library-{name}.txt", f"{name} module", uri, {"kind": "library", "module": name}, text


def _module(name: str, module: ModuleType) -> Iterator[str]:
    yield from _heading(f"{name} module", "=")
    yield from _indented(inspect.getdoc(module), 0)
    offered = {key: getattr(module, key) for key in sorted(_public(name, module))}
    # Functions first: what follows a class's heading is the class's.
    for key, value in offered.items():
        if inspect.isroutine(value):
            yield f"{name}.{key}{_signature(value)}"
            yield from _indented(inspect.getdoc(value), 4)
    for key, value in offered.items():
        if inspect.isclass(value) and not issubclass(value, BaseException):
            yield from _heading(f"class {name}.{key}{_signature(value)}", "-")
            yield from _indented(inspect.getdoc(value), 0)
            yield from () if name in _WITHOUT_METHODS else _methods(value)


def _public(name: str, module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or else what has no underscore and was defined in it or its C part."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    homes = {name, f"_{name}", "posix" if name == "os" else name}
    return [key for key, value in vars(module).items() if key[0] != "_" and getattr(value, "__module__", "") in homes]


def _methods(cls: type) -> Iterator[str]:
    for key, value in sorted(vars(cls).items()):
        documented = inspect.isroutine(value) or isinstance(value, property)
        doc = inspect.getdoc(value) if documented and not key.startswith("_") else None
        if doc:
            yield f"{cls.__name__}.{key}{'' if isinstance(value, property) else _signature(value)}"
            yield from _indented(doc, 4)


def _heading(title: str, mark: str) -> Iterator[str]:
    yield from (title, mark * len(title), "")


def _indented(doc: str | None, spaces: int) -> Iterator[str]:
    for line in (doc or "").splitlines():
        yield (" " * spaces + line).rstrip()
    yield ""


def _signature(value: Any) -> str:  # noqa: ANN401 - anything that can be called
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return "(...)"
    return _ADDRESS.sub("", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write to")
    folder = parser.parse_args().out
    print(f"{export(folder)} documents in {folder}")
