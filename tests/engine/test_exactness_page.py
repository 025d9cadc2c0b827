"""``docs/exactness.md`` is what the tables say."""

from pathlib import Path

from tests.exact.features import FEATURES
from tests.exact.page import page


def test_the_page_is_current() -> None:
    written = Path(__file__).parents[2] / "docs" / "exactness.md"
    assert written.read_text() == page()
    assert all(feature.__doc__ for feature in FEATURES.values())
