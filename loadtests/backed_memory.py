"""Free memory that costs no arm more than another.

A virtual machine may give free pages back to its host (free page reporting), two seconds after they were freed. The
first touch of such a page is a fault in the host, so that whatever fills memory would be measured by what ran, or
slept, before it.
"""

import tempfile
from pathlib import Path
from typing import Final

# What is in use stays; the touched pages must not push it out.
_SHARE: Final = 0.5
_PIECE: Final = bytes(16 << 20)


def back(size_bytes: int, directory: Path) -> None:
    """Fill so much page cache and free it: what is filled next gets those pages. Call right before a measurement.

    Through a file that is gone before it is on the disk, in `directory`. Touched anonymous memory does not do: where
    the kernel puts its huge pages, page cache is not taken from. Raises OSError.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(min(size_bytes, int(_free_bytes() * _SHARE)) // len(_PIECE) + 1):
            file.write(_PIECE)


def _free_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return 1024 * int(fields["MemFree"].split()[0])
