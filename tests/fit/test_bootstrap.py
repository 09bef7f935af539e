"""Resampling plans."""

import numpy as np
import pytest

from scalelab.errors import UsageError
from scalelab.fit.bootstrap import BootstrapSpec, plan


def make(spec, n=12, labels=None):
    return plan(spec, n, labels, "cluster", np.arange(n))


def whole(replicates, batch=7):
    return np.concatenate(list(replicates.weights(batch)))


def test_rows_are_drawn_with_replacement():
    counts = whole(make(BootstrapSpec(k=300, weighting="counts")))
    assert counts.shape == (300, 12)
    np.testing.assert_array_equal(counts.sum(axis=1), 12)
    assert counts.mean() == 1.0
    assert counts.var() == pytest.approx(11 / 12, rel=0.1)


def test_smooth_weights_are_exponential():
    weights = whole(make(BootstrapSpec(k=2000)))
    assert weights.min() > 0
    assert weights.mean() == pytest.approx(1.0, abs=0.03)
    assert weights.var() == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("weighting", ["smooth", "counts"])
def test_draws_do_not_depend_on_the_batch(weighting):
    replicates = make(BootstrapSpec(k=20, weighting=weighting, seed=5))
    np.testing.assert_array_equal(whole(replicates, 3), whole(replicates, 20))
    other = make(BootstrapSpec(k=20, weighting=weighting, seed=6))
    assert (whole(replicates) != whole(other)).any()


@pytest.mark.parametrize("weighting", ["smooth", "counts"])
def test_rows_of_a_cluster_share_their_weight(weighting):
    labels = np.array(list("aaabbcccccdd"))
    replicates = make(BootstrapSpec(k=50, weighting=weighting), labels=labels)
    assert replicates.method == "cluster"
    assert replicates.n_clusters == 4
    weights = whole(replicates)
    for label in "abcd":
        own = weights[:, labels == label]
        assert (own == own[:, :1]).all()
    renamed = make(BootstrapSpec(k=50, weighting=weighting), labels=np.array(list("zzzyyxxxxxww")))
    np.testing.assert_array_equal(whole(renamed), weights)


def test_labels_that_never_repeat_mean_rows():
    assert make(BootstrapSpec(k=5), labels=np.arange(12)).method == "row"
    assert make(BootstrapSpec(k=5)).method == "row"
    assert make(BootstrapSpec(k=5, method="row"), labels=np.zeros(12)).method == "row"


def test_residual_draws():
    draws = np.concatenate(list(make(BootstrapSpec(k=9, method="residual")).draws(4)))
    assert draws.shape == (9, 12)
    assert draws.min() >= 0
    assert draws.max() < 12


def test_the_method_none_has_no_replicates():
    assert make(BootstrapSpec(k=0)).method == "none"
    assert make(BootstrapSpec(method="none")).k == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"method": "jackknife"}, "bootstrap method"),
        ({"k": -1}, "-1 bootstrap replicates"),
        ({"weighting": "heavy"}, "weighting 'heavy'"),
    ],
)
def test_invalid_specs(bad, message):
    with pytest.raises(UsageError, match=message):
        BootstrapSpec(**bad)


def test_clusters_need_labels():
    with pytest.raises(UsageError, match="without cluster labels"):
        make(BootstrapSpec(method="cluster"))
