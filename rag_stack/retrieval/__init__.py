"""From a question to passages: embed, search, cut.

retriever  the path on one page, in a bounded pool of threads
shelf      the open stores, and a version of one for each request
preparation  what a version goes through before it may serve
rollout    which version every process prepares, and which it serves
embedder   texts -> unit vectors
onnx_session  a transformer in ONNX Runtime: tokens -> what its graph puts out
mapped_weights  which of an embedder's weights all processes share
filters    a request's filter -> the rows that may be found
"""
