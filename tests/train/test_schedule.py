"""Schedules against the formulas they are named after."""

from __future__ import annotations

import math

import pytest

from pollux.train.config import ScheduleConfig
from pollux.train.schedule import factor


def test_inverse_square_root_is_equation_3_of_the_transformer():
    config = ScheduleConfig("inverse_sqrt", warmup=4000)
    for step in (1, 100, 4000, 4001, 100_000):
        assert factor(config, step, share=0.5, d_model=512) == pytest.approx(512**-0.5 * min(step**-0.5, step * 4000**-1.5))
    rates = [factor(config, step, 0.5, 512) for step in (3999, 4000, 4001)]
    assert max(rates) == rates[1], "the peak is at the end of the warm-up"


def test_relative_step_of_adafactor_is_capped_at_one_hundredth():
    config = ScheduleConfig("relative")
    assert [factor(config, step, 0.0, 128) for step in (1, 10_000, 40_000)] == pytest.approx([0.01, 0.01, 0.005])


def test_cosine_rises_over_the_warm_up_and_falls_to_its_floor():
    config = ScheduleConfig("cosine", warmup=10, floor=0.1)
    assert factor(config, 5, 0.0, 128) == pytest.approx(0.5)
    assert factor(config, 100, 0.25, 128) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert factor(config, 400, 1.0, 128) == pytest.approx(0.1)


def test_warmup_stable_decay_is_flat_and_then_linear():
    config = ScheduleConfig("warmup_stable_decay", warmup=10, decay=0.2)
    assert [factor(config, 100, share, 128) for share in (0.1, 0.79, 0.8, 0.9, 1.0)] == pytest.approx([1, 1, 1, 0.5, 0])


def test_constant_stays_at_one_after_the_warm_up():
    assert [factor(ScheduleConfig("constant", warmup=4), step, 0.9, 128) for step in (1, 4, 400)] == [0.25, 1, 1]


def test_a_wrong_schedule_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="schedule.kind 'linear' must be one of constant, cosine"):
        ScheduleConfig("linear")
    with pytest.raises(ValueError, match="warmup must be at least 1 step"):
        ScheduleConfig("inverse_sqrt", warmup=0)
