"""What comes into a build: documents, cut, in windows that fit into memory; and what is left out, with the reason."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

from rag_stack.errors import DocumentError, IndexVersionError
from rag_stack.index.cutting import CutDocument, cut_document
from rag_stack.index.document_ids import DocumentIds
from rag_stack.index.documents import Document
from rag_stack.index.format import MAX_SKIPPED, Chunking, Skipped
from rag_stack.jobs.embedding import Model

_WINDOW_PASSAGES: Final = 4096


class Intake:
    """Cuts documents, in windows that fit into memory, and names what is left out."""

    def __init__(
        self,
        documents: Iterable[Document | Skipped],
        *,
        model: Model,
        chunking: Chunking | None,
        on_error: Literal["skip", "fail"],
    ) -> None:
        self._documents = documents
        self._model = model
        self._chunking = chunking
        self._on_error = on_error
        self._ids = DocumentIds()
        self._skipped: list[Skipped] = []
        self.documents = 0
        self.skipped_documents = 0

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The first of the `skipped_documents` that were left out so far, and why."""
        return tuple(self._skipped)

    def windows(self, seen: Callable[[CutDocument], None]) -> Iterator[tuple[list[CutDocument], bool]]:
        """Cut documents with some thousand passages at a time, and whether these are the last. Raises DocumentError.

        Each is told to `seen` at once.
        """
        window: list[CutDocument] = []
        passages = 0
        for cut in self._cut():
            if passages >= _WINDOW_PASSAGES:
                yield window, False
                window, passages = [], 0
            seen(cut)
            window.append(cut)
            passages += len(cut.passages)
        if window:
            yield window, True

    def require_some(self, name: str) -> None:
        """Raise IndexVersionError when there was no document."""
        if not self.documents:
            listed = "; ".join(f"{each.document}: {each.reason}" for each in self._skipped[:5])
            raise IndexVersionError(
                f"no documents for the index {name!r}: "
                + (f"{self.skipped_documents} were left out ({listed})" if listed else "the source has none")
                + "; check the spec's folder and patterns"
            )

    def _cut(self) -> Iterator[CutDocument]:
        for found in self._documents:
            cut: CutDocument | Skipped
            if isinstance(found, Skipped):
                cut = found
            elif found.document_id in self._ids:
                cut = Skipped(document=_named(found), reason="its id was used by an earlier document")
            else:
                cut = cut_document(
                    found,
                    tokenizer=self._model.tokenizer,
                    max_tokens=self._model.max_tokens,
                    chunking=self._chunking,
                )
            if isinstance(cut, CutDocument):
                self._ids.add(cut.document.document_id)
                self.documents += 1
                yield cut
            elif self._on_error == "fail":
                raise DocumentError(
                    f"cannot index {cut.document!r}: it {cut.reason}; mend or exclude it, or set `on_error: skip` to "
                    "leave such documents out"
                )
            else:
                self.skipped_documents += 1
                if len(self._skipped) < MAX_SKIPPED:
                    self._skipped.append(cut)


def _named(document: Document) -> str:
    path, filename = (document.attributes.get(key) for key in ("path", "filename"))
    return f"{path} ({filename})" if path else document.document_id
