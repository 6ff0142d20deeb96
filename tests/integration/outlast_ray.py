"""A process whose fetch goes on when Ray is shut down in it, which is at its first read from a peer.

Prints the bytes by source. `python outlast_ray.py ADDRESS ROOT CACHE NAME VERSION`.
"""

import json
import sys
from pathlib import Path

import ray

from rag_stack.artifacts.chunk import Buffer, Chunk
from rag_stack.artifacts.fetch import Origin, Source, fetch
from rag_stack.artifacts.ledger import NodeId
from rag_stack.artifacts.partial import Partial
from rag_stack.artifacts.peers import PeerPlan
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving.node_agent import RayCluster


class Leaving(RayCluster):
    """Shuts Ray down before its first read."""

    def read(self, node: NodeId, chunk: Chunk) -> Buffer:
        """As RayCluster's, which then finds no Ray."""
        ray.shutdown()
        return super().read(node, chunk)


def main() -> None:
    """Fetch, verify, print."""
    address, root, cache, name, version = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    tiers = open_tiers(ArtifactsConfig(root=root, cache=Path(cache)), MemoryRecorder())
    manifest = tiers.resolve("models", name, version)
    moved: dict[Source, int] = {"peer": 0, "object_store": 0}

    def fill(partial: Partial) -> None:
        cluster = Leaving(Path(cache), manifest.hex)
        # One thread, and no other that asks Ray: what is asked while it shuts down may never return.
        plan = PeerPlan(partial, Origin(tiers.catalog.store, manifest), cluster, heartbeat_s=3600)
        moved.update(fetch(partial, plan, threads=1))

    tiers.cache.insert(manifest, fill)
    tiers.cache.verify(manifest)
    if ray.is_initialized():
        sys.exit("a cluster was started")
    print(json.dumps(moved))


if __name__ == "__main__":
    main()
