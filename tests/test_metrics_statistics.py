"""Intervals are what a bootstrap of pictures gives."""
import math

import numpy as np
import pytest

from support.metrics.statistics import (
    BOOTSTRAP_CHUNK,
    interval,
    intervals,
    mean_score,
    resample_sums,
)


def test_an_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(400):
        low, high = interval(mean_score("", rng.normal(3, 2, size=60)), range(60), 300, seed=i)
        covered += low <= 3 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_an_interval_of_single_rows_is_as_wide_as_the_binomials():
    flags = np.arange(500) % 4 == 0
    low, high = interval(mean_score("", flags), range(500), 2000)
    width = 2 * 1.96 * math.sqrt(0.25 * 0.75 / 500)
    assert high - low == pytest.approx(width, rel=0.1) and low < 0.25 < high


def test_drawing_pictures_is_wider_than_drawing_rows_that_belong_together():
    flags = np.repeat(np.arange(40) % 2, 25)            # 40 pictures of 25 questions, all or none
    low, high = interval(mean_score("", flags), np.repeat(np.arange(40), 25).tolist())
    own_low, own_high = interval(mean_score("", flags), range(1000))
    assert (high - low) / (own_high - own_low) == pytest.approx(5, rel=0.2)     # sqrt(25)


def test_a_draw_is_of_complete_pictures_and_as_many_as_there_are(monkeypatch):
    stats = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 1]])     # n, in a, in b
    sums = resample_sums(stats, ["a", "b", "b"], 500, seed=0)
    assert set(map(tuple, sums)) == {(2, 2, 0), (3, 1, 2), (4, 0, 4)}
    assert sums[:, 1].mean() == pytest.approx(1, abs=0.1)
    monkeypatch.setattr("support.metrics.statistics.BOOTSTRAP_CHUNK", 7)
    assert BOOTSTRAP_CHUNK > 7
    assert (resample_sums(stats, ["a", "b", "b"], 500, seed=0) == sums).all()


def test_scores_share_their_draws():
    flags = np.arange(30) % 2
    one, two = intervals([mean_score("", flags), mean_score("", flags + 1)], range(30))
    assert np.allclose(two, one + 1) and (one == interval(mean_score("", flags), range(30))).all()
