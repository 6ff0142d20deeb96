"""What a standby imports of rag_stack, with all that it brings: the process that is left can be forked."""

import pytest

pytest.importorskip("vllm")

from rag_stack.generation.fork_start import ENGINE_MODULES
from rag_stack.serving.wake.standby import REPLICA_MODULES
from tests.forkable import why_not

pytestmark = pytest.mark.long

OURS = [name for name in (*REPLICA_MODULES, *ENGINE_MODULES) if name.startswith("rag_stack.")]


def test_the_imports_of_a_replica_leave_a_process_that_can_be_forked() -> None:
    assert OURS
    assert why_not(*OURS) == "None"
