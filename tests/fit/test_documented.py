"""docs/reference names every form and every warning that exists."""

import re
from pathlib import Path

from scalelab.theory.laws import LAWS

ROOT = Path(__file__).parents[2]
FORMS = (ROOT / "docs/reference/fit.md").read_text(encoding="utf-8")
WARNINGS = (ROOT / "docs/reference/warnings.md").read_text(encoding="utf-8")


def test_every_form_is_on_the_page():
    assert {law.name for law in LAWS} <= set(re.findall(r"`(\w+)`", FORMS))


def test_the_page_has_the_warnings_that_exist_and_no_others():
    sources = "".join(path.read_text() for path in (ROOT / "scalelab").rglob("*.py"))
    found = re.findall(
        r'(?:code=|^CODE = )"(\w+)"|notes\["(\w+)"\]|warn\(\s*"(\w+)"|\("(edge_\w+)"',
        sources,
        flags=re.M,
    )
    codes = {name for names in found for name in names if name}
    codes |= {f"approach_{number}_unavailable" for number in (1, 2)}
    listed = set()
    for row in re.findall(r"^\| (`.*?) \|", WARNINGS, flags=re.M):
        listed |= set(re.findall(r"`(\w+)`", row))
    assert listed == codes
