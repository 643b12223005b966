"""One headless Chromium for all tests of pages."""

import pytest


@pytest.fixture(scope="session")
def browser():
    from browser import Browser, find_chromium

    command = find_chromium()
    if command is None:
        pytest.skip("needs Chromium or Chrome")
    browser = Browser(command)
    yield browser
    browser.close()
