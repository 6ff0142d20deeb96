"""The data path: object store -> node cache, with other nodes in between -> page cache -> this process.

tiers          resolve and ensure_local: the story on one page
catalog        what is published, and which version is promoted; `promotion` is the pointer's content and history
retention      which versions are still needed: `hold` says by whom, `deletion` is how the others go
manifest       an artifact's address, files and chunk digests; `chunk` is what moves and is verified
object_store   where artifacts live: any fsspec URL; file_store and s3_store are exact about races
fetch          several threads bring what is missing by a plan; `partial` keeps what came, also over a kill
node_cache     verified, read-only copies on this node, one fetch for all its processes; `pin` and `eviction`
peers          the plan of a fetch together with other nodes; `ledger` gives out the chunks, `offer` reads them
residency      what of a file is in the page cache, and bringing it there; `memory` says how much may come
stored_files   a version's files, or some of them, read from the store and verified
local_file     locks, atomic writes and digests of local files
"""
