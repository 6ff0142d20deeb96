"""What `loadtests.peers` asks about, in the form that each system reads, prepared once below one folder.

The corpus is SciFact in BEIR's layout where it is at hand, each abstract one document; else Python's documentation,
cut into passages of 200 tokens, of which each is a document and none is judged. Passages are embedded here, once, and
all systems are given the same vectors; questions are embedded by each system itself.

Ours is built and set as it comes, by vectors and words, but for its query cache: a peer embeds and searches a question
anew however often it is asked, and so does ours here.
"""

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import yaml

from loadtests.swap_data import EMBEDDER, MODEL, publish_models
from rag_stack.api.auth import digest
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import ArtifactNotFoundError
from rag_stack.index.builder import Cut, write_index
from rag_stack.index.cutting import cut_documents
from rag_stack.index.documents import Document
from rag_stack.index.format import Chunking, EmbedderRef, Lexical
from rag_stack.metrics import MemoryRecorder
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.onnx_session import ONNX_FILE

Vectors = npt.NDArray[np.float32]
REPOSITORY: Final = Path(__file__).parents[1]
SCIFACT: Final = REPOSITORY.parent / "shared" / "data" / "scifact"
STORE: Final = "documents"
KEY: Final = "a-key-of-the-load-test"
_CHUNKING: Final = Chunking(max_tokens=200, overlap_tokens=0)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents, questions by id, and for each question which documents answer it; empty where nobody has judged."""

    name: str
    documents: tuple[Document, ...]
    questions: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A corpus on the disk: `documents` and `vectors` for the peers, `release` for us, `embedder` for all."""

    corpus: Corpus
    documents: Path
    vectors: Path
    embedder: Path
    release: Path


def prepare(folder: Path, *, scifact: Path, top_k: int, threads: int, tell: Callable[[str], None]) -> Prepared:
    """Everything that the systems read. Blocking: minutes at first, for the model's conversion and the embedding."""
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = ArtifactsConfig(root=f"file://{folder / 'artifacts'}", cache=folder / "cache")
    tiers = open_tiers(artifacts, MemoryRecorder(), cache=artifacts.cache)
    manifest = _models(tiers.catalog, tell=tell)
    local = tiers.ensure_local(manifest).path.absolute()
    embedder = Embedder.load(local, name=EMBEDDER, digest=manifest.digest, threads=threads)
    corpus = read_scifact(scifact) if (scifact / "queries.jsonl").is_file() else _python_docs(folder, embedder)
    cut = cut_documents(corpus.documents, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens, chunking=None)
    documents, vectors = folder / f"{corpus.name}.jsonl", folder / f"{corpus.name}-{manifest.version}.npy"
    if not vectors.is_file():
        tell(f"embedding {len(cut.inputs)} documents")
        _save(vectors, embedder.encode(cut.inputs))
    lines = [
        json.dumps({"id": each.document_id, "text": text}) for each, text in zip(cut.documents, cut.inputs, strict=True)
    ]
    documents.write_text("\n".join(lines) + "\n", encoding="utf-8")
    publish_index(tiers.catalog, folder / "index", cut, np.load(vectors), embedder=manifest)
    release = folder / "release.yaml"
    told = release_of(artifacts, top_k=top_k, threads=threads)
    release.write_text(yaml.safe_dump(told), encoding="utf-8")
    return Prepared(corpus, documents, vectors, local, release)


def publish_index(catalog: Catalog, folder: Path, cut: Cut, vectors: Vectors, *, embedder: Manifest) -> Manifest:
    """Ours, promoted: with words beside the vectors, as `rag-stack index build` writes it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ref = EmbedderRef(name=EMBEDDER, digest=embedder.digest)
    metadata = write_index(folder, cut, vectors, embedder=ref, lexical=Lexical()).to_json()
    published = catalog.publish(folder, kind="indexes", name=STORE, metadata=metadata)
    catalog.promote(published.ref, reason="loadtests.peers")
    return published


def read_scifact(folder: Path) -> Corpus:
    """The corpus, and the questions of the test split with their judgements."""
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    documents = tuple(Document(row["_id"], row["text"], row["title"], "") for row in rows)
    texts = {}
    for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts[row["_id"]] = row["text"]
    relevant: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        relevant.setdefault(query, {})[document] = int(score)
    return Corpus("scifact", documents, {query: texts[query] for query in relevant}, relevant)


def _python_docs(folder: Path, embedder: Embedder) -> Corpus:
    source = folder / "python-docs"
    export = [sys.executable, str(REPOSITORY / "indexes" / "python_docs.py"), str(source)]
    subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
    files = sorted(source.glob("*.txt"))
    whole = [Document(each.stem, each.read_text(encoding="utf-8"), each.stem, "") for each in files]
    cut = cut_documents(whole, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens, chunking=_CHUNKING)
    documents = tuple(Document(each.passage_id, each.text, each.title, "") for each in cut.passages)
    questions = (REPOSITORY / "loadtests" / "data" / "questions.txt").read_text(encoding="utf-8").splitlines()
    return Corpus("python-docs", documents, {str(n): text for n, text in enumerate(filter(None, questions))})


def _models(catalog: Catalog, *, tell: Callable[[str], None]) -> Manifest:
    """The embedder's manifest. Ours runs its graph, as after a user's import; peers read the weights beside it."""
    try:
        catalog.resolve("models", MODEL)
        embedder = catalog.resolve("models", EMBEDDER)
        if has_graph(embedder):
            return embedder
    except ArtifactNotFoundError:
        pass
    tell("importing the models")
    embedder = publish_models(catalog, generator=True, tell=tell)
    if not has_graph(embedder):
        tell("ours embeds on torch, too: the import made no graph")
    return embedder


def has_graph(embedder: Manifest) -> bool:
    """Whether an embedder was imported with what ONNX Runtime reads."""
    return any(file.path == ONNX_FILE.as_posix() for file in embedder.files)


def _save(path: Path, vectors: Vectors) -> None:
    partial = path.with_suffix(".partial.npy")
    np.save(partial, vectors)
    partial.replace(path)


def release_of(artifacts: ArtifactsConfig, *, top_k: int, threads: int) -> dict[str, Any]:
    """A release with keys and without a query cache; the rest is as it comes."""
    return {
        "name": "peers",
        "artifacts": {"root": artifacts.root, "cache": str(artifacts.cache)},
        "model": {"name": MODEL},
        "embedder": {"name": EMBEDDER},
        "stores": [{"name": STORE, "index": STORE}],
        "default_store": STORE,
        "retrieval": {"top_k": top_k, "threads_per_search": threads, "query_cache": 0},
        "engine": {"max_model_len": 8192, "max_num_seqs": 64},
        "server": {"api_key_sha256": [digest(KEY)]},
    }


def documents_in(prompt: str, openings: Mapping[str, str]) -> frozenset[str]:
    """The documents of which a prompt holds the opening; `openings` as `openings_of` gives them."""
    text = " ".join(prompt.split())
    return frozenset(document for document, opening in openings.items() if opening in text)


def openings_of(documents: Sequence[Document], *, chars: int = 60) -> dict[str, str]:
    """The first characters of each document's text, by which it is known in a prompt; only those that differ."""
    openings = {each.document_id: " ".join(each.text.split())[:chars] for each in documents}
    counts: dict[str, int] = {}
    for opening in openings.values():
        counts[opening] = counts.get(opening, 0) + 1
    return {document: opening for document, opening in openings.items() if counts[opening] == 1}
