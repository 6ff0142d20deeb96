"""What `loadtests.clients` runs under each version of the official client: needs that client and nothing else.

`python clients_script.py URL KEY FOLDER COUNT` uploads so many text files of a folder and prints one line of JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import openai

_AT_ONCE = 25


def main(url: str, key: str, folder: str, count: int) -> dict[str, Any]:
    """Create a store, fill it, search it, ask about it, and clean up. Raises AssertionError."""
    paths = sorted(Path(folder).glob("*.txt"))[:count]
    assert len(paths) == count, f"{folder} holds {len(paths)} text files, {count} were asked for"
    client = openai.OpenAI(base_url=url, api_key=key, timeout=120, max_retries=5)
    began = time.perf_counter()
    store = client.vector_stores.create(name=f"clients {openai.__version__}", metadata={"client": openai.__version__})
    files: dict[str, str] = {}
    try:
        for first in range(0, count, _AT_ONCE):
            _upload(client, store.id, paths[first : first + _AT_ONCE], files)
        uploaded = time.perf_counter()
        now = client.vector_stores.retrieve(store.id)
        assert (now.status, now.file_counts.completed, now.file_counts.total) == ("completed", count, count), now
        _search(client, store.id, files)
        _own_writes(client, store.id, next(iter(files)))
        searched = time.perf_counter()
        sources = _ask(client, store.id, files)
        return {
            "openai": openai.__version__,
            "files": count,
            "ingest_s": round(uploaded - began, 1),
            "search_s": round(searched - uploaded, 1),
            "answer_s": round(time.perf_counter() - searched, 1),
            "sources": sources,
        }
    finally:
        client.vector_stores.delete(store.id)
        for file in files:
            client.files.delete(file)


def _upload(client: openai.OpenAI, store: str, paths: list[Path], files: dict[str, str]) -> None:
    """The first of each part alone, the rest as a batch with settings of their own."""
    one, *rest = paths
    alone = client.vector_stores.files.upload_and_poll(vector_store_id=store, file=one)
    files[alone.id] = one.name
    assert alone.status == "completed", alone
    client.vector_stores.files.update(alone.id, vector_store_id=store, attributes=_attributes(one))
    asked = []
    for path in rest:
        file = client.files.create(file=path, purpose="assistants")
        files[file.id] = path.name
        asked.append({"file_id": file.id, "attributes": _attributes(path)})
    body: Any = {"files": asked}
    batch = client.vector_stores.file_batches.create(store, file_ids=[], extra_body=_without_ids(body))
    batch = client.vector_stores.file_batches.poll(batch.id, vector_store_id=store)
    assert batch.file_counts.completed == len(rest), batch


def _without_ids(body: dict[str, Any]) -> dict[str, Any]:
    """The older clients know `file_ids` alone, and insist on it; null is as good as left out."""
    return {"file_ids": None, **body}


def _search(client: openai.OpenAI, store: str, files: dict[str, str]) -> None:
    hits = client.vector_stores.search(store, query="How do I sort a list by a key?", max_num_results=10).data
    assert hits, "nothing was found"
    for hit in hits:
        assert files[hit.file_id] == hit.filename, hit
        assert hit.content[0].text, hit
    letter = files[hits[0].file_id][0]
    filters: Any = {"type": "eq", "key": "letter", "value": letter}
    found = client.vector_stores.search(store, query="sort", filters=filters, max_num_results=50).data
    assert found, f"nothing of the letter {letter} was found"
    assert {hit.filename[0] for hit in found} == {letter}, found
    listed = list(client.vector_stores.files.list(store, limit=100, filter="completed"))
    assert {file.id for file in listed} == set(files), f"{len(listed)} of {len(files)} are listed"


def _own_writes(client: openai.OpenAI, store: str, file: str) -> None:
    filters: Any = {"type": "eq", "key": "seen", "value": True}
    client.vector_stores.files.update(file, vector_store_id=store, attributes={"seen": True})
    assert {hit.file_id for hit in client.vector_stores.search(store, query="x", filters=filters).data} == {file}


def _ask(client: openai.OpenAI, store: str, files: dict[str, str]) -> int:
    """The sources of an answer; a model that is asked may cite none of them, but never another."""
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": "What does heapq.heappush do?"}],
        max_tokens=64,
        extra_body={"vector_store_ids": [store]},
    )
    message = answer.choices[0].message
    assert message.content, answer
    sources = answer.model_dump()["rag"]["sources"]
    assert sources, answer
    assert {source["file_id"] for source in sources} <= set(files), sources
    cited = [each for each in message.model_dump().get("annotations") or [] if each["type"] == "file_citation"]
    assert {each["file_citation"]["file_id"] for each in cited} <= {source["file_id"] for source in sources}, cited
    return len(sources)


def _attributes(path: Path) -> dict[str, Any]:
    return {"letter": path.name[0], "bytes": path.stat().st_size}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
