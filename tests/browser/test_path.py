"""A person's path by clicks, from the sweep to a saved run; each number is the command line's."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from scalelab.cli.main import main
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.units import format_quantity

pytestmark = pytest.mark.timeout(1200)


def test_from_a_sweep_to_a_saved_run_by_clicks(
    address: Callable[[str], Any],
    visit: Callable[..., Any],
    settle: Callable[[Page, str], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    page, seen = visit(address("demo").url)
    settle(page, "Overview")
    page.get_by_role("combobox", name="Sweep or table").click()
    page.get_by_role("option", name="demo", exact=True).click()
    expect(page.get_by_test_id("stMain").get_by_text("isoFLOP sweep: 120 done")).to_be_visible()
    settle(page, "Overview")
    expect(page.get_by_test_id("stPlotlyChart")).to_have_count(3)
    page.get_by_test_id("stSidebar").get_by_text("Extrapolate", exact=True).click()
    settle(page, "Extrapolate")
    target = page.get_by_label("Target", exact=True)
    target.fill("2e24")
    target.press("Enter")
    command = page.locator(".terminal").first
    expect(command).to_contain_text("C=2e24")
    settle(page, "Extrapolate")
    assert main([*shlex.split(command.inner_text())[1:], "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["predictions"][0]
    text = page.get_by_test_id("stMain").inner_text()
    for name in ("n_params", "n_tokens"):
        value, low, high = (format_quantity(printed[name + end]) for end in ("", "_low", "_high"))
        assert re.search(rf"{re.escape(value)}\s+{re.escape(low)} to {re.escape(high)}", text)
    assert f"{printed['loss_nats']:.4f}" in text
    assert f"{printed['pred_low']:.4f} to {printed['pred_high']:.4f}" in text
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this run as a sweep file").click()
    saved = tmp_path / "target.toml"
    download.value.save_as(saved)
    spec = sweep_from_mapping(tomllib.loads(saved.read_text()), source="the saved file")
    assert spec.n_params == pytest.approx((printed["n_params"],), rel=1e-5)
    assert seen.errors == []
    assert seen.foreign == []
