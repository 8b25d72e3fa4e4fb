"""Plain words: docstrings begin with a verb or a noun, and some turns of phrase stay away."""

import ast
import pathlib
import re

# "Of the words", "What it holds": the reader has to find the subject first.
FIRST = {"As", "How", "Of", "That", "Those", "What", "Where", "Whether", "Who", "Whose"}
AVOIDED = re.compile(
    r"\b(anew|another's|for naught|is let be|is told of|nobody|stands in|where there is none)\b",
    re.IGNORECASE,
)
PLACES = ("synth2_jax", "configs", "docs", "README.md", "CONTRIBUTING.md")
FILES = [
    file
    for place in map(pathlib.Path, PLACES)
    for file in ([place] if place.is_file() else sorted(place.rglob("*.*")))
    if file.suffix in (".py", ".md", ".j2")
]


def test_docstrings_begin_with_a_verb_or_a_noun():
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text() if path.suffix == ".py" else "")):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and text.split()[0] in FIRST:
                    found.append(f"{path}: {text.splitlines()[0]}")
    assert not found, "\n".join(found)


def test_no_sentence_has_to_be_read_twice():
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if AVOIDED.search(line)
    ]
    assert not found, "\n".join(found)
