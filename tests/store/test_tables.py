import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import DataError, UsageError
from scalelab.store.read_options import ReadOptions, parse_map
from scalelab.store.tables import read_frame, read_table

HEADER = "n_params,n_tokens,loss,flops"


def written(folder, text, name="runs.csv"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def runs(tmp_path):
    rows = [
        f"{1e7 * (i + 1):g},{2e8 * (i + 1):g},{3 - 0.1 * i:g},{7e15 * (i + 1):g}" for i in range(6)
    ]
    return written(tmp_path, "\n".join([HEADER, *rows]) + "\n")


def test_a_table_becomes_observations_in_file_order(runs):
    read = read_table(runs)
    found = read.observations
    np.testing.assert_allclose(found.n_params, 1e7 * np.arange(1, 7))
    np.testing.assert_allclose(found.loss_nats, 3 - 0.1 * np.arange(6))
    np.testing.assert_array_equal(read.lines, np.arange(2, 8))
    assert found.source == "runs.csv"
    assert (found.param_convention, found.flop_convention) == ("unstated", "unstated")
    assert read.rejects == ()
    assert read.notes == {}
    assert read.mapping["loss_nats"] == "loss"


@pytest.mark.parametrize("suffix", ["tsv", "csv.gz", "parquet"])
def test_other_formats_hold_the_same_rows(runs, tmp_path, suffix):
    frame = pd.read_csv(runs)
    path = tmp_path / f"other.{suffix}"
    if suffix == "tsv":
        frame.to_csv(path, sep="\t", index=False)
    elif suffix == "csv.gz":
        path.write_bytes(gzip.compress(runs.read_bytes()))
    else:
        frame.to_parquet(path)
    for one, two in zip(_columns(read_table(path)), _columns(read_table(runs)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_frame_is_a_table(runs):
    for one, two in zip(
        _columns(read_frame(pd.read_csv(runs))), _columns(read_table(runs)), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def _columns(read):
    o = read.observations
    return o.n_params, o.n_tokens, o.loss_nats, o.flops


def test_every_bad_row_is_rejected_with_its_line_and_reason(tmp_path):
    path = written(
        tmp_path,
        "n_params,n_tokens,loss,tag\n"
        "1e6,2e7,3.5,x\n"  # 2
        "1e6,abc,3.5,y\n"  # 3
        "\n"
        "2e6,2e7,3.5\n"  # 5: too short
        "nan,2e7,3.5,x\n"  # 6
        '1e6,2e7,3.5,"q\nz"\n'  # 7 and 8
        "1e6,2e7,-inf,x,7,8\n"  # 9: too long
        "1e6,2e7,inf,w\n"  # 10
        "0,2e7,3.1,w\n"  # 11
        "1e6,-5,3.1,w\n"  # 12
        "1e6,2e7,,w\n"  # 13
        "-1,,bad,w\n"  # 14: the first column at fault is named
        "5e6,2e7,3.1,w\n",  # 15
    )
    read = read_table(path)
    np.testing.assert_array_equal(read.lines, [2, 8, 15])
    found = {reject.line: reject for reject in read.rejects}
    assert list(found) == [3, 5, 6, 9, 10, 11, 12, 13, 14]
    assert found[3].reason == "n_tokens is not a number: 'abc'"
    assert (found[3].column, found[3].value) == ("n_tokens", "abc")
    assert "Found: 3" in found[5].reason
    assert found[6].reason == "n_params is not finite: nan"
    assert found[9].column == ""
    assert found[10].reason == "loss_nats is not finite: inf"
    assert found[11].reason == "n_params is not above zero: 0.0"
    assert found[12].reason.startswith("n_tokens is not above zero: -5")
    assert found[13].reason == "loss_nats is missing"
    assert found[14].column == "n_params"


def test_rows_that_the_condition_leaves_out_are_not_rejects(tmp_path):
    path = written(tmp_path, f"{HEADER}\n1e6,2e7,nan,1e14\n1e6,2e7,3,1e14\n")
    read = read_table(path, ReadOptions(where="loss < 5"))
    assert len(read.observations) == 1
    assert read.rejects == ()


def test_no_usable_row_is_an_error_that_names_the_first_reason(tmp_path):
    path = written(tmp_path, f"{HEADER}\n1e6,2e7,-3,1e14\n")
    with pytest.raises(DataError, match=r"line 2: loss_nats is not above zero: -3"):
        read_table(path)


@pytest.mark.parametrize(("text", "message"), [(HEADER + "\n", "without rows"), ("", "is empty")])
def test_an_empty_table_is_an_error(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_table(written(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("missing.csv", lambda path: None),
        ("folder.csv", lambda path: path.mkdir()),
        ("runs.xlsx", lambda path: path.write_text("x")),
        ("broken.parquet", lambda path: path.write_bytes(b"no parquet")),
        ("binary.csv", lambda path: path.write_bytes(bytes(range(256)) * 9)),
    ],
)
def test_a_file_that_is_not_a_table_is_an_error(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(DataError):
        read_table(tmp_path / name)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_of_all_systems_are_read(tmp_path, end, mark):
    path = tmp_path / "runs.csv"
    rows = [f"{mark}{HEADER}", *(f"{i}e6,2e7,{i},1e14" for i in (1, 2, 3))]
    path.write_bytes((end.join(rows) + end).encode())
    np.testing.assert_array_equal(read_table(path).observations.loss_nats, [1, 2, 3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wide.csv", f"{HEADER}\n1e6,2e7,3,1e14\n".encode("utf-16"), "not UTF-8"),
        ("le.csv", f"{HEADER}\n1e6,2e7,3,1e14\n".encode("utf-16-le"), "not UTF-8"),
        ("latin.csv", f"{HEADER},recett\xe9\n1e6,2e7,3,1e14,x\n".encode("latin-1"), "not UTF-8"),
        (
            "compressed.csv",
            gzip.compress(f"{HEADER}\n1e6,2e7,3,1e14\n".encode(), mtime=0),
            "compressed with gzip",
        ),
        ("plain.csv.gz", f"{HEADER}\n1e6,2e7,3,1e14\n".encode(), "not compressed"),
        ("archive.csv", b"PK\x03\x04" + bytes(40), "compressed with zip"),
    ],
)
def test_an_unsupported_encoding_or_compression_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def test_a_duplicate_column_name_is_refused_if_it_is_read(tmp_path):
    frame = pd.DataFrame([[1e6, 2e7, 3, 4]], columns=["n_params", "n_tokens", "loss", "LOSS"])
    path = tmp_path / "runs.parquet"
    frame.to_parquet(path)
    csv = written(tmp_path, frame.to_csv(index=False))
    for read, table in ((read_table, csv), (read_table, path), (read_frame, frame)):
        with pytest.raises(DataError, match="several columns loss"):
            read(table)
    other = written(tmp_path, "n_params,n_tokens,loss,note,note\n1e6,2e7,3,1,2\n")
    assert len(read_table(other).observations) == 1


def test_missing_columns_are_named_with_the_existing_ones(tmp_path):
    path = written(tmp_path, "param,tokns,valloss\n1e6,2e7,3\n")
    with pytest.raises(DataError, match="param, tokns, valloss") as caught:
        read_table(path)
    assert "n_params (likely: param)" in str(caught.value)
    assert "--map loss_nats=valloss,n_params=param,n_tokens=tokns" in caught.value.do
    (option,) = caught.value.do.removeprefix("Add --map ").split()
    assert len(read_table(path, ReadOptions(mapping=parse_map([option]))).observations) == 1


@pytest.mark.parametrize(
    ("header", "option"),
    [
        ("N,params,D,eval/loss", "n_params=params"),
        ("N,D,val_loss,test_loss", "loss_nats=val_loss"),
        ("n_param,n_tokens,loss", "n_params=n_param"),
        ("a,b,loss", "n_params=COLUMN,n_tokens=COLUMN"),
        ("flops,train_tokns,Val Los", "'loss_nats=Val Los,n_tokens=train_tokns'"),
    ],
)
def test_missing_columns_are_guessed_from_usual_names(tmp_path, header, option):
    path = written(tmp_path, f"{header}\n1e6,2e7,3\n")
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert caught.value.do == f"Add --map {option}"


def test_a_column_that_a_condition_misspells_is_suggested(tmp_path):
    path = written(tmp_path, "params,n_tokens,loss\n1e6,2e7,3\n")
    for options in (
        ReadOptions(mapping={"n_params": "parms"}),
        ReadOptions(mapping={"n_params": "params"}, where="parms > 1"),
        ReadOptions(mapping={"n_params": "params"}, where="n_params > 1"),
    ):
        with pytest.raises(UsageError, match="Did you mean params"):
            read_table(path, options)
    with pytest.raises(UsageError, match="Did you mean --map n_params=params"):
        ReadOptions(mapping={"params": "n_params"})


def test_a_text_column_is_one_error_instead_of_many_rejects(tmp_path):
    path = written(tmp_path, f"{HEADER}\nsmall,2e7,3,1e14\nlarge,2e7,3,1e14\n")
    with pytest.raises(DataError, match=r"n_params of runs\.csv, which contains text"):
        read_table(path)


def test_columns_are_mapped_by_name_or_expression(tmp_path):
    path = written(tmp_path, "Params,steps,val loss\n1e6,100,3\n2e6,200,2.5\n")
    options = ReadOptions(
        mapping=parse_map(["n_params=params,loss_nats=val loss", "n_tokens=steps * least(512, 64)"])
    )
    found = read_table(path, options).observations
    np.testing.assert_allclose(found.n_params, [1e6, 2e6])
    np.testing.assert_allclose(found.n_tokens, [6400, 12800])
    np.testing.assert_allclose(found.loss_nats, [3, 2.5])


def test_a_mapped_column_wins_over_one_of_our_name_which_conditions_still_see(tmp_path):
    path = written(tmp_path, "n_params,n_params_nonembed,n_tokens,loss\n100,70,1e3,3\n10,7,1e3,4\n")
    options = ReadOptions(mapping={"n_params": "n_params_nonembed"}, where="n_params > 50")
    found = read_table(path, options).observations
    np.testing.assert_allclose(found.n_params, [70])
    assert found.param_convention == "kaplan"


@pytest.mark.parametrize("text", ["n_params", "=x", "a b=c", "n_params=a,n_params=b", "n_params="])
def test_an_invalid_mapping_is_refused(text):
    with pytest.raises(UsageError, match="--map"):
        parse_map([text])


def test_a_mapping_of_an_unknown_name_suggests_the_nearest(tmp_path):
    path = written(tmp_path, "n_params,n_tokens,loss,val_loss\n1e6,2e7,3,4\n")
    with pytest.raises(UsageError, match="loss_nat is not one of our columns") as caught:
        read_table(path, ReadOptions(mapping={"loss_nat": "val_loss"}))
    assert "loss_nats" in caught.value.do
    with pytest.raises(UsageError, match="unique_tokens"):
        ReadOptions(mapping={"zzz": "loss"})
    read = read_table(path, ReadOptions(mapping={"weight": "1 / val_loss"}))
    np.testing.assert_allclose(read.observations.extra["weight"], [0.25])


@pytest.mark.parametrize(
    "where",
    [
        "nosuch = 1",
        " ",
        "loss <",
        "loss = 'abc'",
        "true); DELETE FROM source; SELECT * FROM rows WHERE (true",
        "EXISTS (SELECT 1 FROM read_csv('FILE'))",
    ],
)
def test_a_condition_that_is_not_sql_over_the_columns_is_a_usage_error(runs, where):
    where = where.replace("FILE", str(runs))
    with pytest.raises(UsageError):
        read_table(runs, ReadOptions(where=where))
    with pytest.raises(UsageError):
        read_table(runs, ReadOptions(marks={"holdout": where}))


def test_a_comment_does_not_swallow_the_rest_of_the_query(runs):
    assert len(read_table(runs, ReadOptions(where="loss < 2.85 -- small")).observations) == 4


def test_marks_are_evaluated_on_the_rows(runs):
    read = read_table(runs, ReadOptions(where="flops > 7e15", marks={"holdout": "loss < 2.75"}))
    np.testing.assert_array_equal(read.marks["holdout"], read.observations.loss_nats < 2.75)


def test_missing_flops_and_sizes_are_derived_with_a_note(tmp_path):
    path = written(tmp_path, "n_params,n_tokens,loss\n3e6,2e7,3\n")
    read = read_table(path)
    assert read.observations.flops[0] == pytest.approx(6 * 3e6 * 2e7)
    assert read.observations.flop_convention == "6nd"
    assert "6 N D" in read.notes["derived_flops"]
    path = written(tmp_path, "n_params,flops,loss\n3e6,3.6e14,3\n")
    read = read_table(path)
    assert read.observations.n_tokens[0] == pytest.approx(2e7)
    assert "derived_n_tokens" in read.notes


def test_budget_cluster_and_other_numbers_are_kept(tmp_path):
    path = written(
        tmp_path,
        "n_params,n_tokens,loss,isoflop_budget,run,lr,arch\n"
        "1e6,2e7,3,6e18,a,0.1,x\n1e6,4e7,2.9,,a,0.2,y\n2e6,4e7,2.8,0,b,,z\n",
    )
    found = read_table(path, ReadOptions(text_columns=("arch",))).observations
    np.testing.assert_array_equal(found.budget, [6e18, np.nan, np.nan])
    assert found.cluster.tolist() == ["a", "a", "b"]
    np.testing.assert_array_equal(found.extra["lr"], [0.1, 0.2, np.nan])
    assert found.extra["arch"].tolist() == ["x", "y", "z"]


def test_exact_copies_are_counted(tmp_path):
    path = written(tmp_path, f"{HEADER}\n1e6,2e7,3,1e14\n1e6,2e7,3,1e14\n2e6,2e7,3,1e14\n")
    read = read_table(path)
    assert len(read.observations) == 3
    assert read.notes["duplicate_rows"].startswith("1 row repeats")


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(*[st.floats(1e-3, 1e25, allow_nan=False) for _ in range(4)]),
        min_size=1,
        max_size=8,
    ),
    order=st.permutations(range(4)),
)
def test_numbers_survive_the_file_in_any_column_order(tmp_path_factory, rows, order):
    names = ["n_params", "n_tokens", "loss", "flops"]
    lines = [",".join(names[i] for i in order)]
    lines += [",".join(repr(row[i]) for i in order) for row in rows]
    path = written(tmp_path_factory.mktemp("rows"), "\n".join(lines) + "\n")
    found = np.column_stack(_columns(read_table(path)))
    np.testing.assert_allclose(found, np.array(rows), rtol=1e-15)


def test_real_tables_are_read_completely(tables):
    counts = {
        "chinchilla": 245,
        "datablations": 306,
        "llama3": 133,
        "marin": 273,
        "olmo_ladder": 2025,
        "xlstm": 430,
    }
    for name, count in counts.items():
        read = read_table(tables / name / "data.csv")
        assert len(read.observations) + len(read.rejects) == count, name
