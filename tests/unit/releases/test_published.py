"""Release versions: what makes one, what is kept for it, and what it gives back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.retention import Retention
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import Release
from rag_stack.errors import ArtifactCorruptError, ArtifactError, ArtifactOutdatedError
from rag_stack.releases.pinned import DEPLOYMENT_FIELDS, PinnedRelease, pin
from rag_stack.releases.published import RELEASE_FILE, load, publish

Pinned = Callable[..., PinnedRelease]


def test_the_same_content_is_the_same_version(catalog: Catalog, pinned: Pinned) -> None:
    first = publish(catalog, pinned())
    assert publish(catalog, pinned()) == first
    assert catalog.versions("releases", "demo") == [first.version]


@pytest.mark.parametrize(
    "changes",
    [
        {"server": {"port": 9000}},
        {"scaling": {"max_replicas": 3}},
        {"drain": {"limit_s": 1}},
        {"wake": {"hold_requests": 1}},
        {"rollout": {"step_s": 1, "canaries": [{"question": "why?"}]}},
        {"swap": {"limit_s": 1}},
    ],
)
def test_what_belongs_to_the_deployment_makes_no_other_version(pinned: Pinned, changes: dict[str, Any]) -> None:
    assert pinned(**changes).version == pinned().version


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": {"system": "Be brief."}},
        {"engine": {"max_num_seqs": 4}},
        {"retrieval": {"top_k": 7}},
        {"stores": [{"name": "docs", "index": "docs", "version": "v2"}]},
        {"stores": [{"name": "docs", "index": "docs"}]},
        {"admission": {"queue": 3}},
    ],
)
def test_what_decides_an_answer_makes_another_version(pinned: Pinned, changes: dict[str, Any]) -> None:
    assert pinned(**changes).version != pinned().version


def test_every_field_is_of_the_release_or_of_the_deployment(pinned: Pinned) -> None:
    content = pinned().content["release"]
    assert set(content) | set(DEPLOYMENT_FIELDS) == set(Release.model_fields)
    assert not set(content) & set(DEPLOYMENT_FIELDS)


def test_a_version_comes_back_as_it_was_with_the_deployments_own(catalog: Catalog, pinned: Pinned) -> None:
    published = pinned(prompt={"system": "Be brief."}, server={"port": 9000})
    publish(catalog, published)
    other = pinned(server={"port": 9999}, scaling={"max_replicas": 5}).release
    found = load(catalog, "demo", published.version, deployment=other)
    assert (found.version, found.content, found.followed) == (published.version, published.content, ())
    assert (found.release.server.port, found.release.scaling.max_replicas) == (9999, 5)
    assert found.release.artifacts == other.artifacts
    assert load(catalog, "demo", published.version).release.server.port == 8000


def test_a_changed_file_is_not_taken(catalog: Catalog, pinned: Pinned, tmp_path: Path) -> None:
    version = publish(catalog, pinned()).version
    file = tmp_path / "store/releases/demo" / version / RELEASE_FILE
    file.chmod(0o644)
    file.write_bytes(file.read_bytes().replace(b"generator", b"generatox"))
    with pytest.raises(ArtifactCorruptError):
        load(catalog, "demo", version)


def test_a_field_that_is_not_known_any_more_says_so(catalog: Catalog, tmp_path: Path) -> None:
    source = tmp_path / "odd"
    source.mkdir()
    (source / RELEASE_FILE).write_text('{"release": {"name": "demo", "gone": 1}}')
    catalog.publish(source, kind="releases", name="demo", metadata={}, version="old")
    with pytest.raises(ArtifactOutdatedError, match="apply its file again"):
        load(catalog, "demo", "old")


def test_what_a_version_pins_is_kept_until_it_is_gone(catalog: Catalog, tiers: Tiers, fields: dict[str, Any]) -> None:
    ref = publish(catalog, pin(Release.model_validate(fields), tiers)).ref
    fields["stores"][0]["version"] = "v2"
    other = publish(catalog, pin(Release.model_validate(fields), tiers)).ref
    catalog.promote(other)
    retention = Retention(catalog, grace_s=0)
    first = catalog.resolve("indexes", "docs", "v1").ref
    catalog.promote(ArtifactRef("indexes", "docs", "v2"))
    catalog.withdraw("indexes", "docs")

    def kept() -> dict[str, tuple[str, ...]]:
        found = retention.collect("indexes", "docs", keep=0, older_than_s=0)
        return {each.ref.version: each.reasons for each in found.kept}

    assert kept() == {"v1": (f"pinned by {ref}",), "v2": (f"pinned by {other}",)}
    assert [str(each.ref) for each in retention.collect("releases", keep=0, older_than_s=0).deleted] == [str(ref)]
    assert kept() == {"v2": (f"pinned by {other}",)}
    assert first.version not in catalog.versions("indexes", "docs")


@pytest.mark.parametrize("version", ["ROLLOUT", "PROMOTED"])
def test_no_version_has_the_name_of_what_lies_beside_it(version: str) -> None:
    with pytest.raises(ArtifactError, match="ROLLOUT"):
        ArtifactRef("releases", "demo", version)
