"""What the tests of commands share: a runner of the command line, and a table."""

import functools

import pytest

from scalelab.cli import devices
from scalelab.cli.main import main
from scalelab.fit import select


@pytest.fixture
def run(capsys):
    """Return a runner of the command line: exit code, stdout, stderr."""

    def call(*words, code=0):
        capsys.readouterr()
        found = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert found == code, f"exit {found}: {out[-800:]} {err[-800:]}"
        return out, err

    return call


@pytest.fixture(scope="session")
def probe():
    """Return the probe of this machine's accelerators, which imports torch in a process, once."""
    return functools.cache(devices._probe)


@pytest.fixture
def probed_once(probe, monkeypatch):
    """Probe the machine once: the tests that use it are about what is printed."""
    monkeypatch.setattr(devices, "_probe", probe)


@pytest.fixture(scope="session")
def rankings():
    return {}


@pytest.fixture
def ranked_once(rankings, monkeypatch):
    """Rank the forms of the same rows once, with few replicates: the tests are about the page."""
    rank = select.compare

    def once(rows, **options):
        options = {"k": 10, **options}
        key = (rows.loss_nats.tobytes(), repr(sorted(options.items())))
        if key not in rankings:
            rankings[key] = rank(rows, **options)
        return rankings[key]

    monkeypatch.setattr(select, "compare", once)


@pytest.fixture(scope="session")
def file(isoflop_runs, tmp_path_factory):
    rows = isoflop_runs(noise=0.004)
    path = tmp_path_factory.mktemp("cli") / "runs.csv"
    columns = (rows.n_params, rows.n_tokens, rows.loss_nats, rows.flops, rows.budget)
    lines = ["n_params,n_tokens,loss,flops,isoflop_budget"]
    lines += [",".join(repr(float(value)) for value in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path
