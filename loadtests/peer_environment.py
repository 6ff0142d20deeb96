"""Virtual environments of peers: what a benchmark compares with, and what the project itself does not depend on.

`data/peers/NAME.txt` holds a peer's pinned requirements. Its environment is `var/peers/NAME`, made when it is first
asked for and made anew when the pins have changed; it sees this environment's packages behind its own. Pins with a line
`# without dependencies` are installed so: of their packages only files are used.
"""

import hashlib
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

_REQUIREMENTS: Final = Path(__file__).parent / "data" / "peers"
_ENVIRONMENTS: Final = Path(__file__).parent.parent / "var" / "peers"
_ALONE: Final = "# without dependencies"
_STAMP: Final = ".installed"
_LOG_LINES: Final = 5


class PeerError(Exception):
    """A peer's packages could not be installed."""


def peer_python(name: str, *, directory: Path = _ENVIRONMENTS, requirements: Path = _REQUIREMENTS) -> Path:
    """The interpreter of a peer's environment, made if need be. Blocking: minutes at first, and reads a package index.

    Raises PeerError with the end of pip's output.
    """
    pins = requirements / f"{name}.txt"
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()
    environment = directory / name
    python, stamp = environment / "bin" / "python", environment / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return python
    venv.create(environment, clear=True, with_pip=True, symlinks=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (own / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    alone = ["--no-deps"] if _ALONE in pins.read_text(encoding="utf-8").splitlines() else []
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *alone, "--requirement", pins],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-_LOG_LINES:])
        raise PeerError(f"pip cannot install {pins.name} for {Path(sys.executable).name}:\n{tail}")
    stamp.write_text(digest, encoding="utf-8")
    return python
