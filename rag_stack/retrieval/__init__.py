"""From a question to passages: embed, search, cut.

retriever  the path on one page, in a bounded pool of threads
embedder   texts -> unit vectors
mapped_weights  which of an embedder's weights all processes share
filters    a request's filter -> the rows that may be found
"""
