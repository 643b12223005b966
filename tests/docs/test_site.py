"""The site of `make docs`: complete, without internet, and with a search that works from the disk."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra docs")

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # half a minute on an idle core


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_nothing_comes_from_the_internet(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(https?:[^\" >]+)", page.read_text()
        )
        assert not loaded, page


def test_every_option_and_name_is_found(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    titles = [entry["title"] for entry in index["docs"]]
    assert any("DICOM" in entry["text"] for entry in index["docs"])
    assert "mpunet predict" in titles  # of the command line
    assert any("Reconstructor" in title for title in titles)  # of the API
    text = (site / "configuration.html").read_text()
    assert "in_plane_as_depth" in text  # of the default configuration
    assert (site / "method.html").read_text().count("<math") >= 5


def test_pages_and_search_in_a_browser(site, browser):
    for page in sorted(set(site.glob("*.html")) - {site / "404.html"}):  # which is for servers
        for width in (1280, 375):
            browser.open(page, width=width, mobile=width == 375)
            assert not browser.problems, page
            assert all(
                address.startswith(("file:", "about:", "data:", "blob:"))
                for address in browser.requests
            )
            assert browser.run("document.documentElement.scrollWidth") <= width, page
    browser.open(site / "index.html")
    browser.run("document.querySelector('[data-md-component=search-query]').focus()")
    browser.call("Input.insertText", text="DICOM")
    browser.wait("document.querySelectorAll('.md-search-result__link').length > 3", seconds=60)
    found = browser.run("document.querySelector('.md-search-result__list').innerText")
    assert "DICOM" in found
    assert not browser.problems
