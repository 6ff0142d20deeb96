"""From a cold or warm node to tensors on a GPU: ours, vLLM's own load, and the fastest plain copy.

`python -m loadtests.gpu_weights` is `loadtests.weights` with a model on the first GPU: a load ends when the device has
every tensor. One arm more reads the same files into pinned memory and copies them to the device, two buffers in turn,
and builds no model: what the other warm arms could gain.

Exit code 0: goals met; 1: one is missed; 2: two arms did not load the same; 3: no GPU.
"""

import sys
from collections.abc import Sequence
from typing import Final

import torch

from loadtests import weights

NO_GPU: Final = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure on the first GPU; exit code 3 where torch has none."""
    options = weights.parser("gpu_weights", __doc__).parse_args(arguments)
    if options.quick:
        options.rounds, options.size_mb = 2, 150
    if not torch.cuda.is_available():
        print(f"no GPU for torch {torch.__version__}: run it where there is one")
        return NO_GPU
    arms = {**weights.ARMS, weights.COPIED: "plain copy to the device, warm"}
    return weights.run(
        "gpu_weights",
        "cuda:0",
        arms,
        rounds=options.rounds,
        size_mb=options.size_mb,
        results=options.results,
        embedder=False,
    )


if __name__ == "__main__":
    sys.exit(main())
