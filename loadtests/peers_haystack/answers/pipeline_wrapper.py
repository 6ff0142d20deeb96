"""Haystack behind Hayhooks, as `loadtests.peers` measures it: runs in the environment of `data/peers/haystack.txt`.

`hayhooks run --pipelines-dir loadtests/peers_haystack` serves it as the model `answers`. The pipeline is that of
Haystack's own guides: text embedder, FAISS retriever, prompt builder, chat generator; the wrapper streams as
Hayhooks' README shows. The environment says what to read (see loadtests/peers_arms.py).
"""

import json
import os
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import numpy as np
from hayhooks import BasePipelineWrapper, async_streaming_generator, get_last_user_message, streaming_generator
from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersTextEmbedder
from haystack_integrations.components.retrievers.faiss import FAISSEmbeddingRetriever
from haystack_integrations.document_stores.faiss import FAISSDocumentStore

from loadtests.peers_embedding import EmbeddingMeter

_TEMPLATE = """
Given the following information, answer the question.

Context:
{% for document in documents %}
    {{ document.content }}
{% endfor %}

Question: {{question}}
Answer:
"""


class PipelineWrapper(BasePipelineWrapper):
    """What Hayhooks deploys."""

    def setup(self) -> None:
        """Fill the store and connect the components."""
        store = _filled(Path(os.environ["PEER_DOCUMENTS"]), Path(os.environ["PEER_VECTORS"]))
        # The bar of each single encoding is the component's default; nobody would leave it on in a server.
        self._embedder = SentenceTransformersTextEmbedder(model=os.environ["PEER_EMBEDDER"], progress_bar=False)
        self._retriever = FAISSEmbeddingRetriever(document_store=store, top_k=int(os.environ["PEER_TOP_K"]))
        prompt = ChatPromptBuilder(template=[ChatMessage.from_user(_TEMPLATE)], required_variables="*")
        generator = OpenAIChatGenerator(
            api_key=Secret.from_token("none"),
            model="scripted",
            api_base_url=os.environ["PEER_ENGINE"],
            generation_kwargs={"max_tokens": int(os.environ["PEER_MAX_TOKENS"]), "temperature": 0},
        )
        self.pipeline = Pipeline()
        self.pipeline.add_component("text_embedder", self._embedder)
        self.pipeline.add_component("retriever", self._retriever)
        self.pipeline.add_component("prompt_builder", prompt)
        self.pipeline.add_component("llm", generator)
        self.pipeline.connect("text_embedder.embedding", "retriever.query_embedding")
        self.pipeline.connect("retriever", "prompt_builder.documents")
        self.pipeline.connect("prompt_builder.prompt", "llm.messages")
        self._meter = EmbeddingMeter()
        self._embedder.run = self._meter.around(self._embedder.run)

    def run_api(self, questions: list[str], top_k: int) -> dict[str, Any]:
        """For the load test: what embedding has cost so far, and the ids that each question retrieves."""
        told = self._meter.told()
        found = [self._retriever.run(self._embedder.run(text=text)["embedding"], top_k=top_k) for text in questions]
        return {**told, "documents": [[document.meta["id"] for document in each["documents"]] for each in found]}


def _run_arguments(messages: list[dict[str, Any]]) -> dict[str, Any]:
    question = get_last_user_message(messages)
    return {"text_embedder": {"text": question}, "prompt_builder": {"question": question}}


if os.environ.get("PEER_ASYNC") == "1":

    async def _answer_async(
        self: PipelineWrapper,
        model: str,  # noqa: ARG001
        messages: list[dict[str, Any]],
        body: dict[str, Any],  # noqa: ARG001
    ) -> AsyncGenerator[Any, None]:
        return async_streaming_generator(pipeline=self.pipeline, pipeline_run_args=_run_arguments(messages))

    PipelineWrapper.run_chat_completion_async = _answer_async
else:

    def _answer(
        self: PipelineWrapper,
        model: str,  # noqa: ARG001
        messages: list[dict[str, Any]],
        body: dict[str, Any],  # noqa: ARG001
    ) -> Generator[Any, None, None]:
        return streaming_generator(pipeline=self.pipeline, pipeline_run_args=_run_arguments(messages))

    PipelineWrapper.run_chat_completion = _answer


def _filled(documents: Path, vectors: Path) -> FAISSDocumentStore:
    embeddings = np.load(vectors)
    store = FAISSDocumentStore(embedding_dim=embeddings.shape[1])
    rows = [json.loads(line) for line in documents.read_text(encoding="utf-8").splitlines()]
    store.write_documents(
        [
            Document(id=row["id"], content=row["text"], meta={"id": row["id"]}, embedding=embedding.tolist())
            for row, embedding in zip(rows, embeddings, strict=True)
        ]
    )
    return store
