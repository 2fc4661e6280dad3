"""Check the built site in a browser, from disk: `python -m tests.documentation.site docs/_build/html`.

Every page, at 360 and 1400 px, light and dark: nothing is wider than the window, no script complains, no file is
missing, and nothing is asked of the network. Links and anchors within the site lead somewhere. Search finds a term.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

FLAGS = ["--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking", "--no-sandbox"]
WIDTHS = (360, 1400)
SCHEMES = ("light", "dark")
TERM, PAGE = "conflict", "reading.html"
"""A word that the search must find, and a page that must be among the results."""


class _Links(HTMLParser):
    """The links of a page and the anchors in it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors.update(filter(None, (given.get("id"), given.get("name"))))
        self.links += [found for key in ("href", "src") if (found := given.get(key))]


def dead_links(site: Path) -> Iterator[str]:
    """A sentence for every link within the site that leads nowhere."""
    pages = {page: _read(page) for page in sorted(site.rglob("*.html"))}
    for page, read in pages.items():
        for link in read.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.exists():
                yield f"{page.relative_to(site)}: {link} leads to no file"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{page.relative_to(site)}: {link} leads to no anchor"


def _read(page: Path) -> _Links:
    links = _Links()
    links.feed(page.read_text(encoding="utf-8"))
    return links


def faults(site: Path, browser: Any, shots: Path | None = None) -> Iterator[str]:
    """A sentence for all that is wrong with a page in the browser; pictures of the pages go to `shots`."""
    for scheme in SCHEMES:
        for width in WIDTHS:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab = context.new_page()
            said: list[str] = []
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.on("requestfailed", lambda request, said=said: said.append(f"{request.url} failed"))
            tab.on("request", lambda request, said=said: _outside(request.url) and said.append(request.url))
            for page in sorted(site.rglob("*.html")):
                name = page.relative_to(site)
                tab.goto(page.as_uri())
                if wider := tab.evaluate(_WIDER):
                    said.append(f"is {wider} px too wide")
                if shots:
                    file = shots / f"{'-'.join(name.with_suffix('').parts)}-{width}-{scheme}.png"
                    tab.screenshot(path=file, full_page=True)
                yield from (f"{name} at {width} px, {scheme}: {words}" for words in said)
                said.clear()
            context.close()


_WIDER = "Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth)"


def _outside(url: str) -> bool:
    return urlsplit(url).scheme not in {"file", "data", "blob", "about"}


_SEARCHED = "document.querySelector('#search-results h2')?.innerText === 'Search Results'"
"""The page adds one result after another under the title "Searching", and changes the title when it has all."""


def search(site: Path, browser: Any) -> Iterator[str]:
    """A sentence if the search does not find a term from disk."""
    tab = browser.new_page()
    tab.goto(f"{(site / 'search.html').as_uri()}?q={TERM}")
    tab.wait_for_function(_SEARCHED, timeout=60_000)
    found = [
        Path(urlsplit(link.get_attribute("href")).path).name for link in tab.query_selector_all("#search-results li a")
    ]
    if PAGE not in found:
        yield f"the search for {TERM} does not find {PAGE}, but {found}"


def main(site: Path, shots: Path | None = None) -> int:
    """Print what is wrong and return 1 if anything is; without a browser, links alone are checked outside CI."""
    wrong = list(dead_links(site))
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("there is no Chromium here: only links were checked")
        wrong += ["no browser"] if os.environ.get("CI") else []
    else:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            wrong += [*faults(site, browser, shots), *search(site, browser)]
            browser.close()
    print("\n".join(wrong) or f"{len(list(site.rglob('*.html')))} pages are in order")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
