"""One running product for the end-to-end tests that don't break it."""

from collections.abc import Generator

import pytest

from tests.e2e.product import Product, running_product


@pytest.fixture(scope="session")
def product() -> Generator[Product]:
    with running_product() as found:
        yield found
