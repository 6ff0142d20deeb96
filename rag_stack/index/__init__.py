"""What one index version is, how it is built and how it is read.

spec       the declarative description of an index (YAML)
documents  source files -> documents; what cannot be read is named
sections   the parts of a document between its headings
chunking   a document -> chunks that fit the embedder, each a verbatim slice
builder    documents -> index.faiss, passages.arrow, documents.arrow
format     file names, Arrow schemas, metadata
passages   the memory-mapped passage table
selector   how each kind of FAISS index is told which rows may be found
probe      which part of an index's file a query reads
residency  what of a file is in the page cache
memory     how much of it this process may still take
listing    the published versions as rows
judgement  whether a version may be promoted, and whether its stored bytes are right
difference what two versions differ in
reader     one open index version: mapped, prefaulted, searched
"""
