"""Reads a page as a reader and a browser do."""

import re
from html.parser import HTMLParser

import pytest


class Page(HTMLParser):
    """The tags, attributes and text of a page; fails if tags do not nest or anything is loaded."""

    VOID = {"meta", "img", "br", "path", "rect", "use", "circle", "polygon"}

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.open, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        assert not {"script", "link", "iframe", "object"} & set(self.tags)
        for _, name, value in self.attributes:
            assert not name.startswith("on")
            assert name not in ("src", "href") or value.startswith(("data:image/", "#"))
        assert not re.search(r"https?:|@import|url\((?!#)", text)

    @property
    def words(self) -> str:
        """The text of the body, with single spaces."""
        text = " ".join("".join(self.texts).replace("\N{NO-BREAK SPACE}", " ").split())
        return re.sub(r" (?=[,.;:])", "", text)

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "body" in self.open:
            self.texts.append(data + " " * (self.open[-1] != "bdi"))


@pytest.fixture
def read_page():
    """The class Page: read_page(html)."""
    return Page
