"""Fetches for the processes of a node that serve, in a process of its own that gives way to all of them.

A fetch's threads take the interpreter's lock for every step. In a process that serves they would hold up its requests,
and at a low priority still more: one that waits for a core while it has the lock makes all others wait, too.
"""

import logging
import os
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.serving.node_agent import agent_name, cluster_peers
from rag_stack.serving.ray_recorder import RayRecorder

# A new version of what the actor takes needs a new name: it outlives the program that made it.
NAMESPACE: Final = "rag_stack.fetch.1"
_NICENESS: Final = 19
_AT_ONCE: Final = 4


class Fetcher:
    """One on each node and for each cache, from the first swap on."""

    def __init__(self, artifacts: ArtifactsConfig) -> None:
        os.nice(_NICENESS)
        self._tiers = open_tiers(artifacts, RayRecorder(), peers=cluster_peers(artifacts))

    def fetch(self, manifest: Manifest) -> None:
        """Bring an artifact into this node's cache. Blocking. Raises ArtifactError."""
        self._tiers.ensure_local(manifest).pin.release()


class NodeFetch:
    """Has this node's fetcher bring an artifact. What it cannot do, whoever asks does by itself, with its own error."""

    def __init__(self, artifacts: ArtifactsConfig) -> None:
        # Replicas share a node's cache, whatever their working directory is.
        self._artifacts = artifacts.model_copy(update={"cache": artifacts.cache.absolute()})

    def __call__(self, manifest: Manifest) -> None:
        """Return when it is there, or nobody else will bring it. Blocking."""
        if not ray.is_initialized():
            return
        try:
            ray.get(self._fetcher().fetch.remote(manifest))
        except (RayError, ValueError) as exc:
            logging.getLogger(__name__).warning("fetching %s in this process: %s", manifest.ref, exc)

    def _fetcher(self) -> Any:  # noqa: ANN401 - an actor handle is what its class is
        node = ray.get_runtime_context().get_node_id()
        # One for each cache and object store: releases that differ in either do not share it.
        place = f"{self._artifacts.cache} {self._artifacts.root}"
        name = agent_name(node, place).replace("agent", "fetcher", 1)
        return (
            ray.remote(Fetcher)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
                max_concurrency=_AT_ONCE,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self._artifacts)
        )
