"""What a person sees: answers, sources, citations and hits. Text from documents and models is data, never markup."""

import unicodedata
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rag_stack.client import Answer, SearchResults
from rag_stack.protocol import RagCitation, RagSource

_QUOTE_CHARS = 160
_HIT_CHARS = 240


def printable(text: str) -> str:
    """The text without control characters: a document must not be able to steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def shortened(text: str, limit: int) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def print_sources(console: Console, sources: Sequence[RagSource]) -> None:
    """A numbered table of what went into the prompt."""
    if not sources:
        console.print("no sources: nothing was searched", style="dim")
        return
    table = Table("", "source", "score", "where", box=None, header_style="bold", pad_edge=False)
    for source in sources:
        title = shortened(source.title or source.filename, 80)
        where = printable(source.url) or source.filename
        table.add_row(f"[{source.number}]", Text(title), f"{source.score:.2f}", Text(where, overflow="fold"))
    console.print(table)


def print_citations(console: Console, citations: Sequence[RagCitation], *, answer: str) -> None:
    """Each citation: what of the answer it supports, how it was found, and the quote."""
    for citation in citations:
        claim = shortened(answer[citation.start_index : citation.end_index], 80)
        line = Text.assemble(
            (f"[{citation.source}] ", "bold"),
            (f"{citation.method:<8}", "cyan" if citation.method == "marker" else "green"),
            f"{claim} ",
            (f"“{shortened(citation.quote, _QUOTE_CHARS)}”", "dim"),
        )
        console.print(line)


def print_answer_footer(console: Console, answer: Answer) -> None:
    """What stands below an answer's text."""
    console.print()
    if answer.finish_reason == "length":
        console.print("cut off: the answer reached --max-tokens or the model's context", style="yellow")
    print_sources(console, answer.sources)
    if answer.citations:
        console.print()
        print_citations(console, answer.citations, answer=answer.text)
    elif answer.sources:
        console.print("no citations: no sentence has a marker or a verified quote", style="dim")
    console.print(Text(f"\n{_facts(answer)}", style="dim"))


def print_hits(console: Console, results: SearchResults) -> None:
    """Hits, best first, with the beginning of each passage."""
    if not results.hits:
        console.print(Text(f"nothing found in {results.store} ({results.index_version})", style="dim"))
        return
    for number, hit in enumerate(results.hits, start=1):
        text = " ".join(content.text for content in hit.content)
        head = f" {shortened(hit.title or hit.filename, 100)}  "
        console.print(Text.assemble(f"{number:>2} ", (f"{hit.score:.3f}", "green"), (head, "bold"), printable(hit.url)))
        console.print(Text(f"   {shortened(text, _HIT_CHARS)}", style="dim"))
    console.print(Text(f"\n{results.store} {results.index_version}, {_milliseconds(results.timings_ms)}", style="dim"))


def _facts(answer: Answer) -> str:
    version = f"@{answer.release_version}" if answer.release_version else ""
    facts = [f"release {answer.release}{version}", f"model {answer.model}"]
    facts += [f"index {store} {version}".strip() for store, version in answer.index_versions.items()]
    if answer.sources:
        facts.append(_milliseconds(answer.timings_ms))
    if answer.usage is not None:
        cached = "" if answer.usage.cached_tokens is None else f" ({answer.usage.cached_tokens} cached)"
        facts.append(f"{answer.usage.prompt_tokens}{cached} + {answer.usage.completion_tokens} tokens")
    return ", ".join(map(printable, facts))


def _milliseconds(timings_ms: Mapping[str, float]) -> str:
    """`embed 8 ms, search 2 ms`: what took at least a tenth of one."""
    return ", ".join(f"{stage} {value:.1f} ms" for stage, value in timings_ms.items() if value >= 0.1) or "0 ms"
