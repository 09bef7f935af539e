"""Figures as they are sent: the same content, in a form that Plotly draws once."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest
from scalelab_dashboard import drawn_once

from scalelab.report import draw
from scalelab.report.look import LIGHT


def figure_of(values: np.ndarray) -> go.Figure:
    figure = go.Figure([go.Bar(x=[1, 2, 3], y=values), go.Scatter(x=values, y=values)])
    figure.update_layout(template="plotly")  # Streamlit has one of its own
    figure.add_annotation(x=1, y=2, text="here", ax=3)
    return draw.finish(figure, LIGHT, alt="a figure", x="size", y="loss")


def sent(figure: go.Figure, *, is_clicked: bool = False) -> dict:
    return json.loads(drawn_once.prepare(figure, is_clicked=is_clicked).to_json())


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_numbers_are_lists_with_the_same_values(kind: type) -> None:
    values = np.array([1.7, 20000.3, 3e-5]).astype(kind)
    found = sent(figure_of(values))["data"]
    assert found[0]["y"] == [float(str(each)) for each in values]
    assert kind(found[1]["x"]).tolist() == values.tolist()


def test_what_has_no_value_stays_empty() -> None:
    assert sent(figure_of(np.array([1.7, np.nan, 3.0])))["data"][1]["y"] == [1.7, None, 3.0]


def test_a_surface_keeps_its_rows() -> None:
    surface = np.array([[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]])
    figure = draw.finish(go.Figure(go.Contour(z=surface)), LIGHT, alt="a surface")
    assert sent(figure)["data"][0]["z"] == surface.tolist()


def test_the_template_is_written_out_under_what_the_figure_says() -> None:
    figure = figure_of(np.array([1.7, 2.0, 3.0]))
    template = figure.layout.template
    found = sent(figure)
    layout = found["layout"]
    assert "template" not in layout
    assert "meta" not in layout
    assert layout["colorway"] == list(template.layout.colorway)
    assert layout["font"]["color"] == LIGHT.ink
    assert layout["xaxis"]["gridcolor"] == LIGHT.grid
    assert layout["xaxis"]["zerolinewidth"] == template.layout.xaxis.zerolinewidth
    assert layout["annotations"][0]["arrowhead"] == template.layout.annotationdefaults.arrowhead
    assert layout["annotations"][0]["ax"] == 3
    bar = template.data.bar[0]
    assert found["data"][0]["marker"]["line"]["width"] == bar.marker.line.width
    assert "polar" not in layout


def test_other_data_have_another_revision() -> None:
    first, same, other = (
        sent(figure_of(np.array([1.7, 2.0, last])))["layout"]["datarevision"] for last in (3, 3, 4)
    )
    assert first == same != other


def test_the_page_has_the_alternative_text() -> None:
    assert drawn_once.prepare(figure_of(np.ones(3)), is_clicked=True).layout.meta["alt"]
