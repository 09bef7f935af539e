"""Share: the figures of a view as PNG, SVG, PDF or CSV, the figure of the fit, and the link.

The browser makes the pictures and tables of its own figures. "PDF of the fit" is the figure of
``scalelab fit --plot``.
"""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from scalelab_dashboard import PDF_SCRIPT, queries

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport
    from scalelab_dashboard.choice import Choice

HTML = """
<details class="share"><summary>Share this view</summary>
<p><button class="copy">Copy link</button> <output></output></p><div class="list"></div></details>
"""
CSS = """
.share { font: 14px "Source Sans", Helvetica, Arial, sans-serif; color: var(--st-text-color); }
.share summary { cursor: pointer; }
.share .list > div { display: flex; flex-wrap: wrap; gap: 6px; align-items: baseline;
  padding: 2px 0; }
.share .list span { min-width: 20em; }
.share button { font: inherit; color: inherit; cursor: pointer; padding: 1px 10px;
  border: 1px solid rgba(128, 128, 128, 0.5); border-radius: 6px; background: none; }
"""
JS = """
const cell = value => {
  const text = value === undefined || value === null ? "" : String(value);
  return /[",\\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
};
const tableOf = plot => {
  const rows = [["series", "x", "y", "x_minus", "x_plus", "y_minus", "y_plus", "z"]];
  for (const trace of plot._fullData) {
    const name = trace.name, x = [...(trace.x ?? [])], y = [...(trace.y ?? [])];
    if (trace.z) {
      y.forEach((b, i) => x.forEach((a, k) => rows.push([name, a, b, , , , , trace.z[i][k]])));
      continue;
    }
    const bars = ["error_x", "error_y"].flatMap(e => [trace[e]?.arrayminus, trace[e]?.array]);
    for (let i = 0; i < Math.max(x.length, y.length); i++)
      rows.push([name, x[i], y[i], ...bars.map(bar => bar?.[i])]);
  }
  return rows.map(row => Array.from(row, cell).join(",")).join("\\n") + "\\n";
};
const hand = (blob, name) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const save = async (plot, kind, file) => {
  if (kind === "CSV") return hand(new Blob([tableOf(plot)], { type: "text/csv" }), file + ".csv");
  if (kind === "PDF") {
    const { pdfOf } = await import(new URL("PDF_SCRIPT", document.baseURI));
    return hand(await pdfOf(plot, titleOf(plot)), file + ".pdf");
  }
  const format = kind.toLowerCase();
  plot._context.toImageButtonOptions = { format, filename: file, scale: kind === "PNG" ? 2 : 1 };
  plot.querySelector('.modebar-btn[data-title^="Download plot"]').click();
};
const titleOf = plot => plot.querySelector(".gtitle tspan")?.textContent ?? "Figure";
// Streamlit keeps the elements of the view before until the new one is drawn.
const figures = () => [...document.querySelectorAll(".js-plotly-plot")].filter(
  plot => !plot.closest('[data-stale="true"]') && plot.checkVisibility());
export default function ({ parentElement }) {
  const root = parentElement.querySelector(".share"), list = root.querySelector(".list");
  root.querySelector(".copy").onclick = async () => {
    const told = root.querySelector("output");
    try {
      await navigator.clipboard.writeText(location.href);
      told.textContent = "copied";
    } catch {
      told.textContent = location.href;
    }
  };
  const draw = plots => {
    list.replaceChildren();
    for (const plot of plots) {
      const title = titleOf(plot);
      const row = document.createElement("div"), words = document.createElement("span");
      words.textContent = title;
      row.append(words);
      const file = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
      for (const kind of ["PNG", "SVG", "PDF", "CSV"]) {
        const button = document.createElement("button");
        button.textContent = kind;
        button.onclick = () => save(plot, kind, file);
        button.setAttribute("aria-label", `${kind} of ${title}`);
        row.append(button);
      }
      list.append(row);
    }
  };
  // The page stays open while its view changes: the list follows the figures.
  let listed = "", later;
  const ids = root.ids ??= new WeakMap();
  const follow = () => {
    if (!root.open) return;
    const plots = figures();
    for (const plot of plots) if (!ids.has(plot)) ids.set(plot, (root.last = (root.last ?? 0) + 1));
    const now = plots.map(plot => ids.get(plot) + titleOf(plot)).join("|");
    if (now !== listed) {
      listed = now;
      draw(plots);
    }
  };
  root.ontoggle = follow;
  const watch = new MutationObserver(() => {
    clearTimeout(later);
    later = setTimeout(follow, 200);
  });
  watch.observe(document.body, {
    subtree: true, childList: true, attributes: true, attributeFilter: ["data-stale"],
  });
  return () => {
    watch.disconnect();
    clearTimeout(later);
  };
}
"""


def show(choice: Choice) -> None:
    """Draw the share list of a view, and the PDF of its fit where it is fitted."""
    if choice.key is None:
        return
    _component()(key="share")
    report = queries.fits().done(choice.key)
    if report is not None:
        st.download_button(
            "PDF of the fit",
            lambda: pdf_of(report),
            "fit.pdf",
            "application/pdf",
            on_click="ignore",
            help="The figure of scalelab fit --plot fit.pdf.",
        )


def pdf_of(report: FitReport) -> bytes:
    """Return the figure of a fit as a PDF file."""
    from scalelab.report.plots import draw_fit

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fit.pdf"
        draw_fit(report, path)
        return path.read_bytes()


@lru_cache(maxsize=1)
def _component() -> Any:
    """Register the component, once per server."""
    return st.components.v2.component(
        "scalelab_share", html=HTML, css=CSS, js=JS.replace("PDF_SCRIPT", PDF_SCRIPT.name)
    )
