from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snella.compare.statistics import mean_of_pairs, spread, t_quantile

stats = pytest.importorskip("scipy.stats")

share = st.integers(0, 100).map(lambda count: count / 100)
scores = st.lists(st.tuples(share, share), min_size=2, max_size=12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 30, 101])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_quantiles_are_those_of_scipy(freedom, confidence):
    assert t_quantile(freedom, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(scores)
def test_the_interval_of_paired_differences_is_that_of_scipy(pairs):
    ours, theirs = zip(*pairs, strict=True)
    found = mean_of_pairs([a - b for a, b in pairs])
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.pairs == len(pairs)
    assert found.mean == pytest.approx(sum(ours) / len(ours) - sum(theirs) / len(theirs), abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    if found.high - found.low > 1e-9:  # scipy divides by a spread of nothing
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_deviation_is_that_of_a_sample():
    assert spread([1, 2, 6]).std == pytest.approx(7**0.5)


def test_one_value_says_nothing_of_the_spread():
    assert spread([0.5]).std is None
    assert mean_of_pairs([0.25]).mean == 0.25
    assert mean_of_pairs([0.25]).low is None
