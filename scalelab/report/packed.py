"""Plotly inside an HTML file, compressed: a third of its size, unpacked by the browser."""

from __future__ import annotations

import base64
import gzip
import json
from functools import lru_cache
from typing import Any

CONFIG = {"displaylogo": False, "responsive": True}
_LOADER = """
// In a narrow window, labels that would cover others are hidden
function separate(plot) {
  const kept = [];
  for (const label of plot.querySelectorAll(".annotation")) {
    const a = label.getBoundingClientRect();
    const covers = kept.some(b =>
      a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom);
    if (covers) label.style.visibility = "hidden";
    else kept.push(a);
  }
}
(async () => {
  const shown = document.getElementById("plotly-fault");
  try {
    const unpack = text => {
      const packed = Uint8Array.from(atob(text.trim()), c => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      return new Response(stream).text();
    };
    const script = document.createElement("script");
    script.textContent = await unpack(document.getElementById("plotly").textContent);
    document.head.append(script);
    for (const [name, text] of window.figures) {
      const figure = JSON.parse(await unpack(text));
      separate(await Plotly.newPlot(name, figure.data, figure.layout, CONFIG));
    }
  } catch (error) {
    shown.hidden = false;
    shown.textContent = "This browser cannot draw the figures (" + error +
      "). Open the file in a browser of 2023 or later.";
  }
})();
"""


def first_script() -> str:
    """Return the script of the head: the list that the figures of the page fill."""
    return "<script>window.figures = [];</script>"


def figure_script(name: str, content: dict[str, Any]) -> str:
    """Return the script that adds a figure, of the element ``name``, to the list."""
    body = _packed(json.dumps(content, separators=(",", ":")))
    return f'<script>figures.push(["{name}","{body}"])</script>'


def last_script() -> str:
    """Return the end of the body: compressed Plotly, and the script that draws all figures."""
    loader = _LOADER.replace("CONFIG", json.dumps(CONFIG))
    return (
        '<p id="plotly-fault" class="warning" hidden></p>'
        f'<script type="text/plain" id="plotly">{_plotly()}</script><script>{loader}</script>'
    )


@lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _packed(get_plotlyjs())


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
