"""Pooled probabilities, and the weights that suit them best: against their definitions and a general optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

from kiln.errors import UsageError
from kiln.metrics.pooling import greedy_weights, mixture_weights, pool_sigmoid, pool_softmax


def members(seed, *, num=4, n=300, scale=3.0):
    return np.random.default_rng(seed).normal(0, scale, (num, n, 5))


def simplex(seed, num=4):
    return np.random.default_rng(seed).dirichlet(np.ones(num))


@pytest.mark.parametrize(
    ("pool", "probabilities"), [(pool_softmax, lambda x: softmax(x, axis=-1)), (pool_sigmoid, expit)]
)
def test_pooling_is_the_weighted_mean_of_probabilities(pool, probabilities):
    logits, weights = members(0), simplex(0)
    expected = np.tensordot(weights, probabilities(logits), axes=1)
    assert np.abs(probabilities(pool(logits, weights)) - expected).max() < 1e-12


@pytest.mark.parametrize("pool", [pool_softmax, pool_sigmoid])
def test_one_member_alone_keeps_its_logits(pool):
    logits = members(1)
    assert np.allclose(pool(logits, np.eye(4)[2]), logits[2], rtol=0, atol=1e-9)


def test_pooled_familiarity_is_the_mean_familiarity():
    logits, weights = members(2), simplex(2)
    expected = weights @ logsumexp(logits, axis=-1)
    assert np.allclose(logsumexp(pool_softmax(logits, weights), axis=-1), expected)


@pytest.mark.parametrize("pool", [pool_softmax, pool_sigmoid])
def test_pooling_of_certain_members_stays_finite(pool):
    certain = np.array([[[900.0, -900.0]], [[-900.0, 900.0]]])
    pooled = pool(certain, [0.75, 0.25])
    assert np.isfinite(pooled).all()
    if pool is pool_softmax:
        assert np.allclose(softmax(pooled, axis=-1), [[0.75, 0.25]])


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [1.0]])
def test_weights_that_are_no_weights_are_refused(weights):
    with pytest.raises(UsageError, match="sum to 1"):
        pool_softmax(np.zeros((2, 3, 4)), weights)


def loss_of(log_likelihoods):
    return lambda weights: -np.mean(logsumexp(log_likelihoods, b=np.maximum(weights, 1e-12)[:, None], axis=0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), num=st.integers(2, 5), spread=st.floats(0.1, 2.0))
def test_fitted_weights_are_as_good_as_those_of_a_general_optimiser(seed, num, spread):
    rng = np.random.default_rng(seed)
    likelihoods = -np.abs(rng.normal(0, spread, (num, 200)) + rng.normal(0, spread, (num, 1)))
    loss = loss_of(likelihoods)
    found = mixture_weights(likelihoods)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    oracle = minimize(
        loss, np.full(num, 1 / num), method="SLSQP", bounds=[(0, 1)] * num,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1}, options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    assert loss(found) <= loss(oracle.x / oracle.x.sum()) + 1e-6


def test_fitted_weights_stay_finite_where_nobody_believed_the_truth():
    likelihoods = np.array([[-1.0, -2000.0], [-3.0, -1999.0]])
    weights = mixture_weights(likelihoods)
    assert np.isfinite(weights).all()
    assert loss_of(likelihoods)(weights) <= min(loss_of(likelihoods)(one) for one in np.eye(2)) + 1e-6


def test_a_member_that_knows_less_everywhere_gets_nothing():
    likelihoods = -np.abs(np.random.default_rng(0).normal(size=(1, 500)))
    weights = mixture_weights(np.concatenate([likelihoods, likelihoods - 1]))
    assert weights[0] > 0.999


def test_greedy_selection_takes_what_helps_and_is_never_below_the_best_alone():
    target = np.array([0.5, 0.25, 0.25, 0.0])

    def score(weights):
        return -np.abs(weights - target).sum()

    assert np.allclose(greedy_weights(4, score), target)
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=(4, 50))

        def rough(weights, values=values):
            return float((weights @ values > 0).mean())

        assert rough(greedy_weights(4, rough)) >= max(rough(one) for one in np.eye(4))
