"""What one index version is, how it is built and how it is read.

spec       the declarative description of an index (YAML)
documents  source files -> documents; what cannot be read is named
sections   the parts of a document between its headings
chunking   a document -> chunks that fit the embedder, each a verbatim slice
cutting    a document -> its passages, and what is embedded for each
builder    passages and vectors -> index.faiss, passages.arrow, documents.arrow
spool      passages and documents on their way into their files
flat_file  vectors on their way into a FAISS index, on the disk
recipe     which kind of index fits a corpus: the recipe `auto`
training   a recipe and vectors -> a FAISS index
tuning     its recall, and the search parameters that reach a target
gate       what must hold before a version is promoted
format     file names, Arrow schemas, metadata
passages   the memory-mapped passage table
selector   how each kind of FAISS index is told which rows may be found
probe      which part of an index's file a query reads
residency  what of a file is in the page cache
memory     how much of it this process may still take
reader     one open index version: mapped, prefaulted, searched
"""
