"""Parameters of a link that the page does not use are named on the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import scalelab_dashboard
from scalelab_dashboard import link
from streamlit.testing.v1 import AppTest

SOURCES = Path(scalelab_dashboard.__file__).parent
KEYS = (
    re.compile(r'key="(\w+)",\s*bind="query-params"'),
    re.compile(r'checked_input\(\s*"[^"]*",\s*"(\w+)"'),
)


def test_every_parameter_of_a_widget_is_known() -> None:
    text = "\n".join(path.read_text() for path in SOURCES.rglob("*.py"))
    found = {name for pattern in KEYS for name in pattern.findall(text)}
    assert len(found) > 25
    assert found <= set(link.KNOWN)


@pytest.mark.parametrize(
    ("texts", "value", "expected"),
    [
        (["90"], 90, True),
        (["0.40"], 0.4, True),
        (["5"], 1.0, False),
        (["x"], 1.0, False),
        (["done", "failed"], ["failed", "done"], True),
        (["done", "broken"], ["done"], False),
        ([""], None, True),
        (["Tied"], "chinchilla", False),
        (["true"], True, True),
        (["true"], False, False),
    ],
)
def test_a_value_of_the_link_is_compared_with_the_widget(
    texts: list[str], value: object, expected: bool
) -> None:
    assert link.is_same(texts, value) is expected


def test_the_page_names_unknown_parameters_and_wrong_values(
    page: Callable[..., AppTest], said: Callable[[AppTest], str], tmp_path: Path
) -> None:
    wrong = {"at": "1e24", "levl": "95", "xyzzy": "1", "form": "teid", "level": "99"}
    test = page(tmp_path, page="Glossary", sweep="public:llama3", **wrong)
    words = said(test)
    assert "no parameter at. Did you mean max_flops?" in words
    assert "no parameter levl. Did you mean level?" in words
    assert "no parameter xyzzy." in words
    assert "form=teid is not valid here. Did you mean tied? Expected: " in words
    assert "level=99 is not valid here." in words
    test.selectbox("form").select("gamma").run()
    assert "form=teid" not in said(test)
    right = page(tmp_path, page="Glossary", sweep="public:llama3", form="tied", level="95")
    assert "not used" not in said(right)
    assert right.selectbox("form").value == "tied"
