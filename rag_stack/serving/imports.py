"""When a replica's process began to import what it needs: imported before everything else, so that it can be timed."""

import time

BEGAN_S = time.time()
