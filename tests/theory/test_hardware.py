"""Every device has a source, and an unknown one is an error, never a guess."""

import pytest

from scalelab.errors import UnknownHardwareError
from scalelab.theory.hardware import HARDWARE, find_hardware, match_hardware, seconds_on


def test_every_figure_has_a_source():
    for item in HARDWARE.values():
        assert item.source
        assert item.price_source
        assert item.peak_flops_per_s > 1e13
        assert item.watts > 10


def test_a_driver_name_finds_its_device_and_an_unknown_one_none():
    found = match_hardware("NVIDIA H200")
    assert found is not None
    assert found.name == "h200"
    assert match_hardware("NVIDIA A100-SXM4-80GB").name == "a100"
    assert match_hardware("Frobnicator 3000") is None


def test_an_unknown_device_lists_the_known_ones():
    with pytest.raises(UnknownHardwareError) as caught:
        find_hardware("h1000")
    assert "h100" in caught.value.allowed
    assert caught.value.exit_code == 2


def test_time_is_flops_over_the_used_share_of_the_peak():
    assert seconds_on(989e12 * 0.4 * 60, find_hardware("H100"), 0.4) == pytest.approx(60)
