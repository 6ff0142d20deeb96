"""LlamaIndex behind FastAPI, as `loadtests.peers` measures it: runs in the environment of `data/peers/llamaindex.txt`.

`python -m loadtests.peers_llamaindex --port 8000` serves it. The index is that of LlamaIndex's own FAISS guide, the
query engine streams as its guide to streaming shows, and FastAPI sends on what it gives, as chunks of OpenAI's form
with nothing in them but the text. The environment says what to read (see loadtests/peers_arms.py).
"""

import argparse
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from llama_index.core import Settings, StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.llms.openai_like import OpenAILike
from llama_index.vector_stores.faiss import FaissVectorStore

from loadtests.peers_embedding import EmbeddingMeter


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(build(), host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


def build() -> FastAPI:
    """The app, ready. Blocking: seconds."""
    meter = EmbeddingMeter()
    Settings.embed_model = _metered(meter)(model_name=os.environ["PEER_EMBEDDER"], device="cpu")
    Settings.llm = OpenAILike(
        model="scripted",
        api_base=os.environ["PEER_ENGINE"],
        api_key="none",
        context_window=8192,
        max_tokens=int(os.environ["PEER_MAX_TOKENS"]),
        is_chat_model=True,
    )
    index = _index(Path(os.environ["PEER_DOCUMENTS"]), Path(os.environ["PEER_VECTORS"]))
    engine = index.as_query_engine(streaming=True, similarity_top_k=int(os.environ["PEER_TOP_K"]))
    app = FastAPI()
    waits = os.environ.get("PEER_ASYNC") == "1"
    app.post("/v1/chat/completions")(_answer_async(engine) if waits else _answer(engine))
    _add_measured(app, index, meter)
    return app


def _answer(engine: Any) -> Any:  # noqa: ANN401 - LlamaIndex is not in the type checker's environment
    def answer(body: dict[str, Any]) -> StreamingResponse:
        response = engine.query(body["messages"][-1]["content"])

        def frames() -> Iterator[str]:
            for text in response.response_gen:
                yield _frame(text)
            yield "data: [DONE]\n\n"

        return StreamingResponse(frames(), media_type="text/event-stream")

    return answer


def _answer_async(engine: Any) -> Any:  # noqa: ANN401
    async def answer(body: dict[str, Any]) -> StreamingResponse:
        response = await engine.aquery(body["messages"][-1]["content"])

        async def frames() -> AsyncIterator[str]:
            async for text in response.async_response_gen():
                yield _frame(text)
            yield "data: [DONE]\n\n"

        return StreamingResponse(frames(), media_type="text/event-stream")

    return answer


def _add_measured(app: FastAPI, index: VectorStoreIndex, meter: EmbeddingMeter) -> None:
    """The routes by which the load test looks into the process."""

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/embedding")
    def embedding() -> dict[str, float]:
        return meter.told()

    @app.post("/retrieve")
    def retrieve(asked: dict[str, Any]) -> dict[str, Any]:
        retriever = index.as_retriever(similarity_top_k=asked["top_k"])
        found = [retriever.retrieve(question) for question in asked["questions"]]
        return {"documents": [[hit.node.metadata["id"] for hit in hits] for hits in found]}


def _metered(meter: EmbeddingMeter) -> type[HuggingFaceEmbedding]:
    class Metered(HuggingFaceEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return meter.around(super()._get_query_embedding)(query)

    return Metered


def _index(documents: Path, vectors: Path) -> VectorStoreIndex:
    embeddings = np.load(vectors)
    store = FaissVectorStore(faiss_index=faiss.IndexFlatL2(embeddings.shape[1]))
    rows = [json.loads(line) for line in documents.read_text(encoding="utf-8").splitlines()]
    nodes = [
        TextNode(
            id_=row["id"],
            text=row["text"],
            metadata={"id": row["id"]},
            excluded_llm_metadata_keys=["id"],
            embedding=embedding.tolist(),
        )
        for row, embedding in zip(rows, embeddings, strict=True)
    ]
    return VectorStoreIndex(nodes, storage_context=StorageContext.from_defaults(vector_store=store))


def _frame(text: str) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n"


if __name__ == "__main__":
    main()
