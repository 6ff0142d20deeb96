"""When a replica's process began to import what it needs: imported before everything else, so that it can be timed.

In a replica whose deployment asks for it, a fork server begins its own import beside that, for the engine's processes.
"""

import time

from rag_stack.generation import fork_start

BEGAN_S = time.time()
# Held for as long as this process lives, since the server ends with whoever holds it. Elsewhere there is none.
FORK_SERVER = fork_start.start()
