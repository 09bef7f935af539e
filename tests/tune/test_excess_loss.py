import numpy as np
import pytest

from scalelab.tune.excess_loss import Axes, excess

AXES = Axes(basis=np.eye(2), has_batch=True)
THETA = np.array([0.2, -0.6, 0.3, -0.1, 0.1, 0.55, -4.4, 0.35, -4.9, 0.8])


def runs(n=40):
    random = np.random.default_rng(3)
    places = random.normal(size=(2, n))
    return AXES.features(*places), *random.normal(size=(2, n))


@pytest.mark.parametrize("skew", [0.8, -0.4, 2e-4])
@pytest.mark.parametrize("has_batch", [True, False])
def test_the_jacobian_is_the_derivative(skew, has_batch):
    axes = Axes(basis=np.eye(2), has_batch=has_batch)
    theta = THETA if has_batch else THETA[[0, 1, 2, 6, 9]]
    theta = np.append(theta[:-1], skew)
    features, x, y = runs()
    _, jacobian = excess(theta, axes, features, x, y)
    step = 1e-5
    for i in range(len(theta)):
        moved = np.eye(len(theta))[i] * step
        up, down = (excess(theta + s * moved, axes, features, x, y)[0] for s in (1, -1))
        np.testing.assert_allclose(jacobian[:, i], (up - down) / (2 * step), rtol=2e-5, atol=1e-8)


def test_the_excess_is_zero_at_the_centre_and_above_zero_elsewhere():
    features, x, y = runs()
    centre_x, centre_y = features @ THETA[:3], features @ THETA[3:6]
    np.testing.assert_allclose(excess(THETA, AXES, features, centre_x, centre_y)[0], 0, atol=1e-15)
    assert np.all(excess(THETA, AXES, features, x, y)[0] > 0)


def test_too_high_a_rate_costs_more_than_too_low_a_rate():
    features = AXES.features(np.zeros(1), np.zeros(1))
    x, y = THETA[:1], THETA[3:4]
    above = excess(THETA, AXES, features, x + 1, y)[0]
    below = excess(THETA, AXES, features, x - 1, y)[0]
    assert above > 1.5 * below
