"""The release file: what is refused, and that the refusal names the file and the field."""

from pathlib import Path

import pytest

from rag_stack.config import load_release
from rag_stack.errors import ConfigError

GOOD = "name: r\nmodel: {name: m}\nembedder: {name: e}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "release.yaml"
    path.write_text(text)
    return path


def test_the_smallest_release_has_defaults(tmp_path: Path) -> None:
    release = load_release(write(tmp_path, GOOD))
    assert release.server.host == "127.0.0.1"
    assert release.stores == ()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (GOOD + "modell: x\n", "modell"),
        (GOOD + "server: {port: 0}\n", "server.port"),
        (GOOD + "server: {port: many}\n", "server.port"),
        (GOOD + "default_store: nowhere\n", "nowhere"),
        (GOOD + "stores: [{name: a, index: i}, {name: a, index: j}]\n", "must differ"),
        (GOOD + "server: {api_key_sha256: [secret]}\n", "api_key_sha256"),
        ("name: ../up\nmodel: {name: m}\nembedder: {name: e}\n", "name"),
        ("name: r\n", "model"),
        ("", "mapping"),
        ("- a\n", "mapping"),
        ("{", "YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(ConfigError, match=field) as refused:
        load_release(write(tmp_path, text))
    assert "release.yaml" in refused.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_release(tmp_path / "missing.yaml")


def test_the_demo_release_is_valid() -> None:
    release = load_release(Path(__file__).parents[2] / "releases" / "demo.yaml")
    assert release.default_store == "python-docs"
