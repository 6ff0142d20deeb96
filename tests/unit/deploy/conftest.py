"""What the tests of the deployment share: every overlay, rendered once."""

import pytest

from deploy.verify.mistakes import Soil, soil
from deploy.verify.render import KUBERAY, Render, render, render_all, targets


@pytest.fixture(scope="session")
def renders() -> dict[str, Render]:
    """Every overlay and loose file, by its name."""
    return {each.name: each for each in render_all(targets())}


@pytest.fixture(scope="session")
def ground() -> Soil:
    """The overlay into which mistakes are seeded."""
    rendered = render(KUBERAY / "overlays" / "single-gpu").rendered
    assert rendered is not None
    return soil(rendered)
