"""What `loadtests.rebuild` indexes: real text for the rates, and as many cheap passages as memory is measured with."""

import json
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

_PAGE_CHARS = 2400
_ROWS_PER_FILE = 2_000
_PASSAGE_WORDS = 20
PASSAGES_PER_ROW = 10


def write_pages(folder: Path, *, pages: int) -> None:
    """The source texts of Python's own library, code and documentation, in pages of some passages: a file each."""
    folder.mkdir(parents=True)
    texts = _some(pages)
    for number, text in enumerate(texts):
        (folder / f"page-{number:05}.txt").write_text(text, encoding="utf-8")


def change_pages(folder: Path, *, share: float, edition: int) -> int:
    """Give some pages, spread over all, the text of other pages, so that nothing of them is known; how many pages."""
    paths = sorted(folder.iterdir())
    step = round(1 / share)
    changed = paths[edition % step :: step]
    spare = _some(len(paths) + (edition + 1) * len(changed))[-len(changed) :]
    for path, text in zip(changed, spare, strict=True):
        path.write_text(text, encoding="utf-8")
    return len(changed)


def write_rows(folder: Path, *, passages: int) -> None:
    """JSON Lines of documents with ten passages each, no two of them alike."""
    folder.mkdir(parents=True)
    rows = passages // PASSAGES_PER_ROW
    for first in range(0, rows, _ROWS_PER_FILE):
        with (folder / f"rows-{first:07}.jsonl").open("w", encoding="utf-8") as file:
            for row in range(first, min(first + _ROWS_PER_FILE, rows)):
                words = range(row * PASSAGES_PER_ROW * _PASSAGE_WORDS, (row + 1) * PASSAGES_PER_ROW * _PASSAGE_WORDS)
                text = " ".join(f"w{word:x}" for word in words)
                file.write(json.dumps({"id": str(row), "text": text, "title": f"row {row}"}) + "\n")


def _some(count: int) -> list[str]:
    found = list(islice(_pages(), count))
    if len(found) < count:
        raise SystemExit(f"Python's library has only {len(found)} pages, {count} are needed; ask for fewer")
    return found


def _pages() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*.py")) + sorted(library.glob("*/*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
        for start in range(0, len(text), _PAGE_CHARS):
            page = text[start : start + _PAGE_CHARS]
            if len(page.split()) > 50:
                yield page
