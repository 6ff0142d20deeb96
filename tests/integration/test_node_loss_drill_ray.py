"""The node-loss drill on a real Ray cluster of two raylets: what the neighbour has comes from there."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

# In a process of its own: the drill connects to Ray, and another test of this process may be connected already.
_PROGRAM = """
import sys
from pathlib import Path
from ray._private import services
from ray.cluster_utils import Cluster
from loadtests.local_cluster import patiently
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.tiers import Tiers
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving.elsewhere import run_elsewhere
from tests.drilled import fetch_words
from tests.promoted import fill, release_of

services.get_node = patiently(services.get_node)
folder = Path(sys.argv[1])
root = f"file://{folder}/store"
tiers = fill(root, folder / "work")
settings = {"num_cpus": 1, "object_store_memory": 128 << 20}
caches = [folder / "cache0", folder / "cache1"]
head = {**settings, "include_dashboard": False, "env_vars": {"RAG_STACK_CACHE": str(caches[0])}}
cluster = Cluster(initialize_head=True, head_node_args=head)
try:
    cluster.add_node(**settings, env_vars={"RAG_STACK_CACHE": str(caches[1])})
    release = release_of(root, folder / "cache")
    scratch = folder / "scratch"
    scratch.mkdir()
    cold = run_elsewhere(cluster.address, fetch_words, release, scratch)
    neighbour = Tiers(tiers.catalog, NodeCache(caches[0]), MemoryRecorder())
    for kind, name in (("models", "words"), ("models", "generator"), ("indexes", "docs")):
        neighbour.ensure_local(neighbour.resolve(kind, name)).pin.release()
    neighbour.cache.wait_synced()
    warm = run_elsewhere(cluster.address, fetch_words, release, scratch)
    print(cold.figure())
    print(warm.figure())
    size = sum(each.size_bytes for each in cold.fetched)
    assert (cold.peers, cold.origin_bytes, cold.peer_bytes) == (True, size, 0), cold
    assert (warm.peers, warm.origin_bytes, warm.peer_bytes) == (True, 0, size), warm
    assert list(scratch.iterdir()) == [] and not caches[1].joinpath("artifacts").exists()
    print("held")
finally:
    cluster.shutdown()
"""


@pytest.mark.timeout(300)
def test_what_the_neighbour_has_comes_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Path(__file__).parents[2]
    # Not below pytest's own: a socket's path must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="loss-", ignore_cleanup_errors=True) as ray_directory:
        monkeypatch.setenv("RAY_TMPDIR", ray_directory)
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.setenv("PYTHONPATH", str(repository))
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(tmp_path)], cwd=repository, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "held"
