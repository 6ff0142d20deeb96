"""Honest citations: each says how it was found, by the model's marker or by a verified span; nothing is invented."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rag_stack.errors import ConfigError
from rag_stack.rag.markers import Marker, blank_markers, find_markers
from rag_stack.rag.overlap import PassageOverlap, is_foreign
from rag_stack.rag.sentences import Span, mask_fences, split_sentences
from rag_stack.types import Citation, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Citer:
    """Finds what supports an answer; pure and fast (milliseconds), so it runs once, on the whole text.

    Markers are taken from prose as ` [1]`, `[1, 2]` or `.[1][2]`; `a[1]`, links and code are none.
    `threshold` is the share of a sentence's weighted content words that one span must hold in the same order;
    `min_words` is how many different content words a sentence needs before vocabulary says anything at all.
    The defaults were chosen on the dev split of loadtests/data/citations.jsonl.
    """

    threshold: float = 0.8
    min_words: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or self.min_words < 1:
            raise ConfigError(
                f"a citer needs 0 < threshold <= 1 and min_words >= 1, got {self.threshold} and {self.min_words}"
            )

    def cite(self, answer: str, sources: Sequence[Source]) -> tuple[Citation, ...]:
        """The citations of an answer, ordered by answer_start, then source.

        A marker speaks for the sentence that it stands in, or that it follows; a number that no source has is ignored.
        A sentence whose marker names a source gets no second citation of it; a question, a listing and a sentence
        that nothing supports get none.
        """
        if not sources:
            return ()
        by_number = {source.number: source for source in sources}
        prose = blank_markers(mask_fences(answer))
        # A line that holds markers and nothing else is no sentence; its markers speak for the one before.
        spans = split_sentences(mask_fences(answer))
        sentences = [(start, end) for start, end in spans if any(map(str.isalpha, prose[start:end]))]
        marked = _assign(find_markers(answer), sentences)
        found = [*self._by_marker(marked, by_number), *self._by_overlap(prose, marked, sentences, sources)]
        return tuple(sorted(found, key=lambda citation: (citation.answer_start, citation.source)))

    def _by_marker(self, marked: Mapping[Span, set[int]], sources: Mapping[int, Source]) -> Iterator[Citation]:
        for span, numbers in marked.items():
            for number in numbers & sources.keys():
                passage = sources[number].hit.passage
                yield Citation(
                    method="marker",
                    source=number,
                    answer_start=span[0],
                    answer_end=span[1],
                    quote=passage.text,
                    quote_start=passage.start,
                    quote_end=passage.end,
                )

    def _by_overlap(
        self, prose: str, marked: Mapping[Span, set[int]], sentences: Sequence[Span], sources: Sequence[Source]
    ) -> Iterator[Citation]:
        passages = [source.hit.passage for source in sources]
        said = "\n".join(f"{passage.title}\n{passage.text}" for passage in passages).lower()
        sentences = [span for span in sentences if not is_foreign(prose[slice(*span)], said, threshold=self.threshold)]
        if not sentences:
            return  # passages are read where there is something to find: that takes milliseconds
        overlap = PassageOverlap(passages, threshold=self.threshold, min_words=self.min_words)
        for start, end in sentences:
            for source, support in zip(sources, overlap.supports(prose[start:end], before=prose[:start]), strict=True):
                if support is None or source.number in marked.get((start, end), ()):
                    continue
                passage = source.hit.passage
                quote = passage.text[support.start : support.end]
                yield Citation(
                    method="overlap",
                    source=source.number,
                    answer_start=start,
                    answer_end=end,
                    quote=quote,
                    quote_start=passage.start + support.start,
                    quote_end=passage.start + support.end,
                )


def _assign(markers: Sequence[Marker], sentences: Sequence[Span]) -> dict[Span, set[int]]:
    """Which numbers each sentence is marked with; a marker between two sentences belongs to the one before."""
    marked: dict[Span, set[int]] = {}
    for marker in markers:
        before = [span for span in sentences if span[0] <= marker.start]
        if before:
            marked.setdefault(before[-1], set()).add(marker.number)
    return marked
