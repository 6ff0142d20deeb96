"""What goes before a release's file."""

import hashlib
from pathlib import Path

import pytest

from rag_stack.config import Release
from rag_stack.errors import ConfigError
from rag_stack.serving.overrides import with_overrides

IN_FILE = "a" * 64


@pytest.fixture
def release() -> Release:
    return Release.model_validate(
        {"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}, "server": {"api_key_sha256": [IN_FILE]}}
    )


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def write_keys(directory: Path, *, api: str, admin: str) -> dict[str, str]:
    (directory / "api").write_text(api)
    (directory / "admin").write_text(admin)
    return {"RAG_STACK_KEYS_DIRECTORY": str(directory)}


def test_flags_go_before_the_environment_and_that_before_the_file(release: Release) -> None:
    environ = {"RAG_STACK_ROOT": "s3://bucket/artifacts", "RAG_STACK_CACHE": "/var/cache/rag-stack"}
    chosen = with_overrides(release, environ=environ)
    assert (chosen.artifacts.root, chosen.artifacts.cache) == ("s3://bucket/artifacts", Path("/var/cache/rag-stack"))
    assert with_overrides(release, root="file:///mine", environ=environ).artifacts.root == "file:///mine"
    assert with_overrides(release, port=9000, environ={}).server.port == 9000
    assert with_overrides(release, environ={}) == release


def test_keys_of_the_file_the_environment_and_the_directory_add_up(release: Release, tmp_path: Path) -> None:
    environ = write_keys(tmp_path, api="sk-one\n\n sk-two \n", admin="sk-admin\n") | {
        "RAG_STACK_API_KEYS": "sk-env, sk-one"
    }
    server = with_overrides(release, environ=environ).server
    assert server.api_key_sha256 == (IN_FILE, digest("sk-env"), digest("sk-one"), digest("sk-two"))
    assert server.admin_key_sha256 == (digest("sk-admin"),)


def test_a_directory_without_keys_opens_nothing(release: Release, tmp_path: Path) -> None:
    """A Secret that was not mounted, or is empty."""
    with pytest.raises(ConfigError, match=r"cannot read the keys in .*api: No such file"):
        with_overrides(release, environ={"RAG_STACK_KEYS_DIRECTORY": str(tmp_path)})
    with pytest.raises(ConfigError, match="admin holds no key"):
        with_overrides(release, environ=write_keys(tmp_path, api="sk-one", admin=" \n"))


def test_no_key_is_told(release: Release, tmp_path: Path) -> None:
    chosen = with_overrides(release, environ=write_keys(tmp_path, api="sk-secret", admin="sk-other"))
    assert "sk-secret" not in repr(chosen)
