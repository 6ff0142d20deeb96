"""Whether a process that has imported something can be forked."""

import os
import subprocess
import sys

# Two as fork_start has them, so that what is left are threads of our imports.
_SINGLE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
_PROGRAM = """
import importlib, sys
from rag_stack.generation.fork_server import unclean
for name in sys.argv[1:]:
    importlib.import_module(name)
print(unclean())
"""


def why_not(*modules: str) -> str:
    """Why a new process that has imported these must not be forked; "None" where it may be."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *modules],
        env={**os.environ, **_SINGLE_THREAD},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout.splitlines()[-1]
