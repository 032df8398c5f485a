"""How the site turns texts of the repository into its own: links, docstrings, texts of options, notebooks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module", autouse=True)
def builder():
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    sys.path.insert(0, str(DOCS))
    yield
    sys.path.remove(str(DOCS))


@pytest.mark.parametrize(
    ("link", "page", "expected"),
    [
        ("loggers.md", "python.md", "loggers.md"),
        ("../loggers.md", "reference/keys.md", "../loggers.md"),
        ("../README.md", "loggers.md", "project/readme.md"),
        ("../../README.md", "reference/keys.md", "../project/readme.md"),
        ("README.md", "loggers.md", "index.md"),
        ("../configs/tiny_digits.yaml", "loggers.md", "REPOSITORY/blob/main/configs/tiny_digits.yaml"),
        ("../configs", "loggers.md", "REPOSITORY/tree/main/configs"),
        ("../../README.md", "project/readme.md", "REPOSITORY/blob/main/README.md"),  # the page shows this file
        ("images/evidence_digits_kl.png", "evidence.md", "images/evidence_digits_kl.png"),
    ],
)
def test_where_a_link_leads(link: str, page: str, expected: str):
    from site_builder.links import target
    from site_builder.project import FACTS

    path = DOCS / page
    assert target(link, path.parent, path) == expected.replace("REPOSITORY", FACTS.repository)


def test_links_in_a_text():
    from site_builder.links import rewritten

    text = "[loggers.md](loggers.md#tensorboard), [the file](../LICENSE):\n```md\n[y](../LICENSE)\n```\n"
    shown = rewritten(f"![Badge](https://example.org/b.svg) {text}", DOCS, DOCS / "python.md")
    assert shown.startswith("Badge [](loggers.md#tensorboard), [the file](https://")  # no picture from elsewhere
    assert "```md\n[y](../LICENSE)\n```" in shown


def test_a_docstring_as_rest():
    from site_builder.docstrings import as_rest

    lines = [
        "Clips |r| to `a|b`s, over a line's `end",
        "too`.",
        "",
        "| key | unit |",
        "|---|---|",
        "| `a/b` | s |",
        "",
        "Example:",
        "    ```python",
        "    x = 1",
        "    ```",
    ]
    text = "\n".join(as_rest(lines))
    assert r"Clips \|r\| to ``a|b``\ s, over a line's ``end too``." in text
    assert ".. list-table::\n   :header-rows: 1\n\n   * - key\n     - unit\n   * - ``a/b``\n     - s\n" in text
    assert "    .. code-block:: python\n\n       x = 1\n" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as given by --config", "as given by `--config`"),
        ("`--config` and 100 %%", "`--config` and 100 %"),
        ("'train/*' and <url>", r"'train/\*' and \<url>"),
        ("a-- b", "a-- b"),
    ],
)
def test_the_text_of_an_option(text: str, expected: str):
    from site_builder.marking import marked

    assert marked(text) == expected


def test_a_notebook_keeps_its_pictures_and_output():
    from site_builder.notebooks import notebook

    text = notebook("notebooks/01_ratio_and_gradient.ipynb")
    assert text.count("](data:image/png;base64,") == 2
    assert "```text\nFlowGRPO" in text
    assert not text.startswith("# ")
