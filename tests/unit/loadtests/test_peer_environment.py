import subprocess
from pathlib import Path

import pytest

from loadtests.peer_environment import PeerError, peer_python


def test_an_environment_sees_ours_behind_its_own_and_is_made_once(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    pins.mkdir()
    (pins / "nothing.txt").write_text("# no peer needs nothing\n")
    python = peer_python("nothing", directory=tmp_path / "environments", requirements=pins)
    found = subprocess.run([python, "-c", "import numpy, sys; print(sys.prefix)"], capture_output=True, text=True)
    assert Path(found.stdout.strip()) == tmp_path / "environments" / "nothing"
    made = python.parent.stat().st_mtime_ns
    assert peer_python("nothing", directory=tmp_path / "environments", requirements=pins) == python
    assert python.parent.stat().st_mtime_ns == made


def test_what_cannot_be_installed_is_told_and_not_taken_for_installed(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    pins.mkdir()
    (pins / "wrong.txt").write_text("./no-such-package\n")
    for _ in range(2):
        with pytest.raises(PeerError, match=r"wrong\.txt"):
            peer_python("wrong", directory=tmp_path / "environments", requirements=pins)
