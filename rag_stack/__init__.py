"""rag_stack: cited answers from your own documents, on machines that you own.

The package, read along its paths:

    types, errors, protocol     the nouns: what passes between stages, what can fail, what goes over the wire
    config, metrics             the release file; every metric, declared once
    timeline                    where a start's time went, over processes
    artifacts/                  DATA PATH: versioned artifacts, object store -> node cache -> this process
    index/                      what one index version is: FAISS file, passages, chunking, building, reading
    retrieval/, generation/     REQUEST PATH: question -> hits; the engine's weights, tokenizer and settings
    rag/                        prompt, citations and the pipeline that joins them
    api/                        the ASGI layer around any OpenAI-compatible engine app
    serving/                    where Ray Serve lives
    jobs/                       index rebuilds
    client/                     the Python SDK
    cli/                        the `rag-stack` command
"""

__version__ = "0.1.0"
