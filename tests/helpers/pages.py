"""A report as a browser sees it."""

import re
from html.parser import HTMLParser
from pathlib import Path

from unlearn_jax.report.page import MINUS


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.html = Path(path).read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, text or "") for name, text in attrs]

    def handle_data(self, data):
        self.text += data.replace(MINUS, "-")

    def values(self, *names):
        return [text for _, name, text in self.attributes if name in names]


def assert_self_contained(page):
    allowed = r"data:image/png;base64,[\w+/=]+|#[\w-]+"
    assert all(re.fullmatch(allowed, text) for text in page.values("src", "href", "xlink:href"))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    names = {name for _, name, _ in page.attributes}
    names = {"on" if name.startswith("on") else name for name in names}
    assert not names & {"on", "srcset", "action", "poster", "background", "data", "xmlns"}
    styles = re.findall(r"<style>(.*?)</style>", page.html, re.S) + page.values("style")
    assert not any("url(" in style or "@import" in style for style in styles)
    assert all(re.fullmatch(r"url\(#[\w-]+\)", text) for text in page.values("clip-path"))
