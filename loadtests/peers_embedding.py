"""The CPU time that embedding a question takes in a serving process, measured in that process. Needs nothing but Python.

Every system that `loadtests.peers` compares has it behind a route, so that what is taken out of its CPU time is its own
embedding: its weights, its library, its threads, its neighbours in the process.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


def cpu_ms_a_question(embed: Callable[[str], object], questions: Sequence[str], *, concurrency: int) -> float:
    """CPU milliseconds of this process for one question, while `concurrency` threads embed. Blocking.

    The rest of the process must be idle meanwhile.
    """
    with ThreadPoolExecutor(concurrency) as threads:
        list(threads.map(embed, questions[:concurrency]))  # threads start, and libraries warm up, in none's time
        began_s = time.process_time()
        list(threads.map(embed, questions))
        return (time.process_time() - began_s) * 1e3 / len(questions)
