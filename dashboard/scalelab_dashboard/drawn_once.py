"""Figures that the browser draws once.

Streamlit's page hands a figure to Plotly twice, the second time as a copy. Plotly draws it again
where it cannot see that the copy is the same: with arrays in binary form, with a template or other
objects of any content, or without ``datarevision``. Drawing is most of what a view costs.
"""

from __future__ import annotations

import base64
import re
from typing import Any
from zlib import crc32

import numpy as np

CLICKED = {"clickmode": "event+select", "hovermode": "closest", "dragmode": "pan"}
"""What Streamlit sets after the first drawing where points can be selected."""
AXIS = re.compile(r"([xy]axis)\d*")
LISTS = {"annotationdefaults": "annotations", "shapedefaults": "shapes"}
OF_OTHERS = ("coloraxis", "geo", "map", "mapbox", "polar", "scene", "smith", "ternary")
"""Parts of a template for figures that have such a part."""


def prepare(figure: Any, *, is_clicked: bool) -> Any:
    """Return a figure with the content that is sent for it.

    Streamlit encodes a figure in every rerun, which takes ten times as long as sending it; here it
    is encoded once. The figure looks as before.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
        From `scalelab.report.draw.finish`, which names its axes.
    is_clicked : bool
        Whether its points can be selected.
    """
    content = _without_template(_plain(figure.to_dict()))
    layout = content["layout"]
    # The page has the alternative text from the figure.
    layout.pop("meta", None)
    if is_clicked:
        layout.update(CLICKED)
    figure.to_dict = lambda: content
    layout["datarevision"] = crc32(figure.to_json().encode())
    return figure


def _plain(value: Any) -> Any:
    """Return content with lists in place of arrays; the numbers of 32 bits in few digits."""
    if isinstance(value, dict):
        if "bdata" not in value:
            return {name: _plain(each) for name, each in value.items()}
        found = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        if "shape" in value:
            found = found.reshape([int(length) for length in str(value["shape"]).split(",")])
        return (found.astype(str).astype(float) if found.dtype == np.float32 else found).tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _without_template(content: dict[str, Any]) -> dict[str, Any]:
    """Return a figure whose traces, axes and annotations have what its template says of them."""
    layout = dict(content["layout"])
    template = layout.pop("template", {})
    for name, default in template.get("layout", {}).items():
        if name in ("xaxis", "yaxis"):
            for axis in [each for each in layout if (at := AXIS.fullmatch(each)) and at[1] == name]:
                layout[axis] = _under(layout[axis], default)
        elif name in LISTS:
            several = LISTS[name]
            if several in layout:
                layout[several] = [_under(each, default) for each in layout[several]]
        elif name not in OF_OTHERS or name in layout:
            layout[name] = _under(layout.get(name), default)
    of_type = template.get("data", {})
    data = [
        _under(trace, (of_type.get(trace.get("type", "scatter")) or [{}])[0])
        for trace in content["data"]
    ]
    return {**content, "data": data, "layout": layout}


def _under(value: Any, default: Any) -> Any:
    """Return a value with what a default has in addition."""
    if isinstance(value, dict) and isinstance(default, dict):
        both = {name: _under(value[name], default.get(name)) for name in value}
        return {**default, **both}
    return default if value is None else value
