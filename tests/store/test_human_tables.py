"""Tables as people write them: cells, names of columns, units, and rows that do not compare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.errors import DataError, UsageError
from scalelab.store.cells import has_decimal_commas, header_scale, parse_cell
from scalelab.store.found_columns import find
from scalelab.store.read_options import ReadOptions, parse_map
from scalelab.store.reading import Reading
from scalelab.store.table_read import TableRead
from scalelab.store.tables import read_table
from scalelab.units import format_quantity

SIZES = [(n, d) for n in (2e7, 1e8, 5e8) for d in (4e8, 2e9, 1e10)]


def law(n: float, d: float) -> float:
    return 1.7 + 400 / n**0.34 + 410 / d**0.28


def read(path: Path, text: str, **reading: object) -> TableRead:
    path.write_text(text)
    return read_table(path, ReadOptions(reading=Reading(**reading)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20M", 2e7), ("1.2T", 1.2e12), ("32.0K", 32e3), ("20,000,000", 2e7), ("**3.364**", 3.364),
        ("11%", 0.11), ("1.2T tokens", 1.2e12), ("125M params", 125e6), ("1 x 10^18", 1e18),
        ("6.5×10^20 FLOPs", 6.5e20), ("1.3 billion", 1.3e9), ("20 000 000", 2e7), ("$3.5$", 3.5),
        ("1_000", 1e3), ("3.", 3.0), (".5", 0.5), ("-0.2", -0.2), ("7b", 7e9),
        ("nan", None), ("", None), ("(M)", None), ("n_params", None), ("3.4 ± 0.1", None),
    ],
)  # fmt: skip
def test_cells(text: str, value: float | None) -> None:
    assert parse_cell(text) == (None if value is None else pytest.approx(value))


@given(st.floats(1e-2, 1e15))
def test_every_quantity_that_we_print_is_read(value: float) -> None:
    text = format_quantity(value, 6)
    assert parse_cell(text) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("texts", "is_small", "is_decimal"),
    [
        (["4,62", "3,9"], False, True), (["20,000,000", "1,000"], False, False),
        (["3,364", "4,120"], True, True), (["3,364", "4,120"], False, False),
        (["1.234,5"], False, True), (["1,234.5"], False, False), (["20M"], True, False),
    ],
)  # fmt: skip
def test_commas_are_decided_for_a_column(
    texts: list[str], is_small: bool, is_decimal: bool
) -> None:
    assert has_decimal_commas(texts, is_small=is_small) is is_decimal


@pytest.mark.parametrize("style", ["suffix", "thousands", "decimal comma", "markdown"])
def test_a_table_in_any_style_has_the_same_rows(tmp_path: Path, style: str) -> None:
    write = {
        "suffix": lambda n, d, x: (f"{n / 1e6:g}M", f"{d / 1e9:g}B", f"{x:.5f}"),
        "thousands": lambda n, d, x: (f'"{n:,.0f}"', f'"{d:,.0f}"', f"{x:.5f}"),
        "decimal comma": lambda n, d, x: (f"{n:.0f}", f"{d:.0f}", f'"{x:.5f}"'.replace(".", ",")),
        "markdown": lambda n, d, x: (f"{n:g}", f"{d:g}", f"**{x:.5f}**"),
    }[style]
    lines = ["n_params,n_tokens,loss_nats"]
    lines += [",".join(write(n, d, law(n, d))) for n, d in SIZES]
    rows = read(tmp_path / "t.csv", "\n".join(lines) + "\n").observations
    np.testing.assert_allclose(rows.n_params, [n for n, _ in SIZES])
    np.testing.assert_allclose(rows.n_tokens, [d for _, d in SIZES])
    np.testing.assert_allclose(rows.loss_nats, [law(n, d) for n, d in SIZES], rtol=1e-5)


def test_unit_rows_and_repeated_headers_are_rejected_with_their_line(tmp_path: Path) -> None:
    table = read(
        tmp_path / "t.csv",
        "n_params,n_tokens,loss_nats,lr\n(M),(B),nats,\n20M,1B,4.2,1e-3\n"
        "n_params,n_tokens,loss_nats,lr\n40M,1B,4.0,2e-3\n",
    )
    assert [reject.line for reject in table.rejects] == [2, 4]
    np.testing.assert_allclose(table.observations.n_params, [2e7, 4e7])
    np.testing.assert_allclose(table.observations.extra["lr"], [1e-3, 2e-3])


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("params,tokens,val_loss", {"n_params": "params", "n_tokens": "tokens"}),
        ("N,D,eval/loss", {"n_params": "N", "n_tokens": "D"}),
        ("model_size,D,C4 Eval Loss", {"n_params": "model_size", "n_tokens": "D"}),
    ],
)
def test_columns_are_found_by_their_names(
    tmp_path: Path, header: str, found: dict[str, str]
) -> None:
    table = read(tmp_path / "t.csv", f"{header}\n2e7,1e9,4.2\n4e7,1e9,4.0\n")
    assert table.mapping == {**found, "loss_nats": header.split(",")[2]}
    assert f"loss_nats from {header.split(',')[2]}" in table.notes["found_columns"]


def test_the_unit_in_a_header_scales_its_column(tmp_path: Path) -> None:
    assert header_scale("params (M)") == 1e6
    assert header_scale("tokens_in_billions") == 1e9
    assert header_scale("D") == 1
    table = read(tmp_path / "t.csv", "Params (M),Tokens (B),loss\n20,1,4.2\n40,1,4.0\n")
    np.testing.assert_allclose(table.observations.n_params, [2e7, 4e7])
    np.testing.assert_allclose(table.observations.n_tokens, [1e9, 1e9])


def test_two_columns_that_fit_are_proposed_and_not_chosen(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="val_loss, test_loss"):
        read(tmp_path / "t.csv", "params,tokens,val_loss,test_loss\n2e7,1e9,4.2,4.3\n")
    assert find(["loss_nats"], ["train_loss", "val_loss", "val_ppl"]) == {"loss_nats": "val_loss"}


@pytest.mark.parametrize("shape", ["lines", "list", "columns", "pandas", "by name", "inside"])
def test_json_in_every_orientation(tmp_path: Path, shape: str) -> None:
    rows = [{"n_params": n, "n_tokens": d, "loss": law(n, d)} for n, d in SIZES]
    texts = {
        "lines": "\n".join(map(json.dumps, rows)),
        "list": json.dumps(rows, indent=1),
        "columns": json.dumps({name: [row[name] for row in rows] for name in rows[0]}),
        "pandas": json.dumps(
            {name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]}
        ),
        "by name": json.dumps({f"run{i}": row for i, row in enumerate(rows)}),
        "inside": json.dumps({"version": 1, "runs": rows}),
    }
    table = read(tmp_path / "runs.json", texts[shape])
    np.testing.assert_allclose(table.observations.n_params, [n for n, _ in SIZES])
    np.testing.assert_allclose(table.observations.loss_nats, [law(n, d) for n, d in SIZES])


@pytest.mark.parametrize("sign", ["[1]", "*", "?", "[!a]"])
def test_a_name_with_glob_signs_is_that_file(tmp_path: Path, sign: str) -> None:
    (tmp_path / "sweep1.csv").write_text("n_params,n_tokens,loss\n1e7,1e9,4\n1e7,2e9,4\n")
    table = read(tmp_path / f"sweep{sign}.csv", "n_params,n_tokens,loss\n2e7,1e9,4.2\n")
    np.testing.assert_allclose(table.observations.n_params, [2e7])


@given(st.text("ab,()\"'= []", max_size=20))
def test_a_map_is_split_only_outside_brackets_and_quotes(text: str) -> None:
    try:
        mapping = parse_map([f"n_params={text}"])
    except UsageError:
        return
    assert set(mapping) <= {"n_params", "a", "b", "ab"} or all(k.isidentifier() for k in mapping)


def test_a_nested_call_and_a_quoted_name_are_one_item() -> None:
    call = "coalesce(try_cast(size AS DOUBLE), try_cast(replace(size,'M','e6') AS DOUBLE))"
    assert parse_map([f'n_params={call},loss_nats="loss, final"']) == {
        "n_params": call,
        "loss_nats": "loss, final",
    }


@pytest.mark.parametrize(
    ("values", "code", "word"),
    [
        ("2e7,1e9,40", "impossible_loss", "--loss-unit perplexity"),
        ("2e7,1e9,0.05", "impossible_loss", "bits-per-byte"),
        ("20,1e9,4", "impossible_size", "n_params=COLUMN*1e6"),
        ("2e7,10,4", "impossible_tokens", "n_tokens=COLUMN*1e9"),
    ],
)
def test_impossible_values_are_said(tmp_path: Path, values: str, code: str, word: str) -> None:
    table = read(tmp_path / "t.csv", f"n_params,n_tokens,loss_nats\n{values}\n")
    assert word in table.notes[code]


@pytest.mark.parametrize(
    ("name", "unit", "value"),
    [
        ("ppl", None, np.log(40.0)), ("eval/bits_per_token", None, 40 * np.log(2)),
        ("val_bpb", None, 40.0), ("loss", "perplexity", np.log(40.0)), ("ppl", "nats", 40.0),
    ],
)  # fmt: skip
def test_units_by_name_or_option(tmp_path: Path, name: str, unit: str | None, value: float) -> None:
    table = read(tmp_path / "t.csv", f"n_params,n_tokens,{name}\n2e7,1e9,40\n", loss_unit=unit)
    assert table.observations.loss_nats[0] == pytest.approx(value)


def sweep_table(tmp_path: Path, **reading: object) -> TableRead:
    lines = ["n_params,n_tokens,loss_nats,lr,seed"]
    for n, d in SIZES:
        for lr, worse in ((1e-3, 0.2), (2e-3, 0.0), (4e-3, 0.1)):
            lines += [f"{n},{d},{law(n, d) + worse + s / 100},{lr},{s}" for s in (0, 1)]
    return read(tmp_path / "t.csv", "\n".join(lines) + "\n", **reading)


def test_swept_settings_are_said_with_the_option_that_keeps_the_best(tmp_path: Path) -> None:
    note = sweep_table(tmp_path).notes["swept_settings"]
    assert "54 rows at 9 sizes (N, D) differ in lr" in note
    assert "--best-of lr --mean-of seed" in note


def test_the_best_and_the_mean_of_each_size(tmp_path: Path) -> None:
    table = sweep_table(tmp_path, best_of="lr", mean_of="seed")
    rows = table.observations
    np.testing.assert_allclose(rows.loss_nats, [law(n, d) + 0.005 for n, d in SIZES])
    assert (rows.extra["lr"] == 2e-3).all()
    assert {"swept_settings", "seed_replicates"}.isdisjoint(table.notes)


@pytest.mark.parametrize("factor", [1e-50, 1e50])
def test_sizes_beyond_single_precision_are_not_one_size(factor: float, tmp_path: Path) -> None:
    lines = ["n_params,n_tokens,loss_nats,lr"]
    lines += [f"{n * factor},{d},{law(n, d) + lr},{lr}" for n, d in SIZES for lr in (1e-3, 2e-3)]
    table = read(tmp_path / "a.csv", "\n".join(lines) + "\n", best_of="lr")
    np.testing.assert_allclose(table.observations.loss_nats, [law(n, d) + 1e-3 for n, d in SIZES])


def test_seeds_alone_are_replicates(tmp_path: Path) -> None:
    table = sweep_table(tmp_path, best_of="lr")
    assert len(table.observations) == 18
    assert "--mean-of seed" in table.notes["seed_replicates"]


def test_the_last_checkpoint_of_each_run(tmp_path: Path) -> None:
    lines = ["run,n_params,n_tokens,loss_nats"]
    lines += [f"r{n:g},{n},{d},{law(n, d)}" for n, d in SIZES]
    text = "\n".join(lines) + "\n"
    assert "--last-of run" in read(tmp_path / "a.csv", text).notes["checkpoints"]
    rows = read(tmp_path / "b.csv", text, last_of="run").observations
    np.testing.assert_allclose(rows.n_tokens, 1e10)


def test_rows_of_failed_runs_are_left_out_and_said(tmp_path: Path) -> None:
    text = "n_params,n_tokens,loss,State\n2e7,1e9,4.2,finished\n4e7,1e9,9,crashed\n"
    table = read(tmp_path / "t.csv", text)
    assert len(table.observations) == 1
    assert "1 row of 2 left out" in table.notes["unfinished_rows"]
    assert len(read(tmp_path / "t.csv", text, includes_unfinished=True).observations) == 2


def test_an_unknown_setting_names_the_columns(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lr, seed"):
        sweep_table(tmp_path, best_of="dropout")
