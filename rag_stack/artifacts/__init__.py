"""The data path: object store -> node cache -> memory.

tiers          ensure_local(manifest): the story on one page
catalog        what is published, and which version is promoted
manifest       an artifact's address, files and digests
object_store   where artifacts live: any fsspec URL
node_cache     verified, read-only copies on this node, shared by all its processes
local_file     locks, atomic writes and digests of local files
"""
