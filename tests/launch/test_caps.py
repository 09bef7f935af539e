"""Caps of a sweep on this machine are checked before any run starts."""

import pytest

from scalelab.api import sweeps as api
from scalelab.cli.main import main
from scalelab.errors import UsageError
from scalelab.launch import execute
from scalelab.launch.base import LaunchReport
from scalelab.launch.saved_options import changed_options
from scalelab.sweep.spec import read_sweep_file, sweep_from_mapping


@pytest.fixture(autouse=True)
def known_speed(cache_home, monkeypatch):
    """Keep speed measurements in the cache folder of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))


def propose(sweep_file, results, **caps):
    sweep = read_sweep_file(sweep_file)
    launcher = changed_options(sweep.launcher, {"slurm": caps})
    sweep = sweep.model_copy(update={"launcher": launcher})
    return api.propose(sweep, results=results.path, device="cpu", is_dry_run=True)


def test_cost_is_capped(sweep_file, results):
    usd = propose(sweep_file, results).cost.usd
    assert api.preview(propose(sweep_file, results, max_usd=1.01 * usd)) is None
    with pytest.raises(UsageError, match="--max-usd") as caught:
        api.preview(propose(sweep_file, results, max_usd=0.99 * usd))
    assert "worker-hours" in caught.value.given


def test_a_cpu_uses_no_gpu_hours(sweep_file, results):
    assert api.preview(propose(sweep_file, results, max_gpu_hours=1e-9)) is None


@pytest.mark.slow
def test_resuming_a_sweep_is_capped_and_refuses_slurm_options(sweep_file, results, capsys):
    sweep = read_sweep_file(sweep_file)
    proposal = api.propose(sweep, results=results.path, device="cpu", workers=1)
    saved = results.save_plan(proposal.plan, sweep.science(), extend=False)
    capped = {"slurm": {"max_usd": 1e-9}}
    with pytest.raises(UsageError, match="--max-usd"):
        api.resume(saved.name, results=results.path, device="cpu", workers=1, launch=capped)
    assert not any(results.run(run_id).attempts() for run_id in saved.run_ids)
    for verb, option in (("resume", ["--partition", "gpu"]), ("retry", ["--detach"])):
        assert main([verb, "tiny", *option, "--results", str(results.path)]) == 2
        assert f"{option[0]} with the local launcher" in capsys.readouterr().err


def test_a_launch_computes_the_cost_of_its_plan(sweep_file, results, monkeypatch):
    # Branches of a trunk: counted one by one they would take a third more.
    started = []

    def launch_local(request, watch):
        started.append(request.sweep)
        return LaunchReport(statuses={}, n_started=0, wall_s=0.0)

    monkeypatch.setattr(execute, "launch_local", launch_local)
    monkeypatch.setattr(execute, "collect", lambda folder: None)
    content = read_sweep_file(sweep_file).model_dump(include={"data", "train"})
    content["train"]["schedule"] = "wsd"
    axes = {"kind": "ladder", "name": "tiny", "n_params": "12K", "n_tokens": "20K,40K,60K"}
    sweep = sweep_from_mapping({**content, **axes}, source="the test")
    usd = api.propose(sweep, results=results.path, device="cpu", workers=1).cost.usd

    def launch(max_usd):
        launcher = changed_options(sweep.launcher, {"slurm": {"max_usd": max_usd}})
        capped = sweep.model_copy(update={"launcher": launcher})
        proposal = api.propose(capped, results=results.path, device="cpu", workers=1)
        api.launch(proposal, results=results.path)

    with pytest.raises(UsageError, match="--max-usd"):
        launch(0.999 * usd)
    launch(1.001 * usd)
    assert started == ["tiny"]
