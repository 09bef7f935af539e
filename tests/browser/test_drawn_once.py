"""Plotly does not draw a figure of the page again when it gets a copy of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import BrowserContext
from scalelab_dashboard import drawn_once

from scalelab.fit.isoflop import fit_isoflop
from scalelab.report import figures_isoflop

SCRIPT = resources.files("plotly.package_data").joinpath("plotly.min.js")
DRAW = """async figures => {
  const place = document.body.appendChild(document.createElement("div"));
  const drawn = [];
  for (const figure of figures) {
    await Plotly.react(place, JSON.parse(JSON.stringify(figure)));
    drawn.push(place.calcdata);
  }
  return drawn.map((each, i) => i > 0 && each === drawn[i - 1]);
}"""


@pytest.mark.parametrize("is_clicked", [True, False])
def test_a_copy_is_not_drawn_again_and_other_data_are(
    profile: Callable[[], BrowserContext], stores: ModuleType, tmp_path: Any, is_clicked: bool
) -> None:
    from scalelab_dashboard import assess

    figures = []
    for seed in (0, 1):
        stores.generated(tmp_path / str(seed), 120, seed=seed)
        rows = assess.used_rows(results=tmp_path / str(seed))
        found = figures_isoflop.isoflop_curves(rows, fit_isoflop(rows))
        prepared = drawn_once.prepare(found, is_clicked=is_clicked)
        figures.append(json.loads(prepared.to_json()))
    first, other = figures
    clicked = {**first, "layout": {**first["layout"], **drawn_once.CLICKED}}
    again = clicked if is_clicked else first
    context = profile()
    page = context.new_page()
    page.add_script_tag(content=SCRIPT.read_text("utf-8"))
    assert page.evaluate(DRAW, [first, first, again, other]) == [False, True, True, False]
    context.close()
