"""From a question to passages: embed, search, cut.

retriever  the path on one page, in a bounded pool of threads
shelf      the open stores, and a version of one for each request
preparation  what a version goes through before it may serve
rollout    which version every process prepares, and which it serves
embedder   texts -> unit vectors, by one of two:
onnx_encoder   in ONNX Runtime, from the graph that an import made
torch_encoder  through sentence-transformers
onnx_session  a transformer in ONNX Runtime: tokens -> what its graph puts out
onnx_export   a torch module -> such a graph, with the weights left where they are
embedder_export  an embedder's graph, made at its import and checked
recent     the latest used values, bounded by their number and memory
reranker   a question and passages -> how well each answers it
reranker_import  a cross-encoder from elsewhere, as a reranker's artifact
mapped_weights  which of an embedder's weights all processes share
filters    a request's filter -> the rows that may be found
"""
