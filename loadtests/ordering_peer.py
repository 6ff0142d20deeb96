"""ContextPilot 0.5.0 puts documents in order, in its own environment: as its quick start has it for online inference.

A JSON list of traces comes on standard input, each a list of questions, each a list of documents, best first. To
standard output goes as many: `orders` of each question, and `us`, the CPU microseconds that each took.
"""

import contextlib
import json
import sys
import time


def main() -> None:
    """One `ContextPilot` a trace, one `reorder` a question."""
    import contextpilot

    done = []
    for trace in json.load(sys.stdin):
        pilot = contextpilot.ContextPilot(use_gpu=False)
        orders, us = [], []
        for documents in trace:
            names = [f"document {number}" for number in documents]
            began = time.thread_time()
            # It reports its progress on standard output.
            with contextlib.redirect_stdout(None):
                (reordered, *_), _ = pilot.reorder(names)
            us.append((time.thread_time() - began) * 1e6)
            orders.append([int(name.rpartition(" ")[2]) for name in reordered])
        done.append({"orders": orders, "us": us})
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
