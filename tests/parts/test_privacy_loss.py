"""ε against dp-accounting called directly, an independent computation, and published numbers."""

import math

import pytest
from scipy.special import logsumexp

from fedsim.parts.privacy_loss import BELOW_ALL, Mechanism, epsilon, largest_epsilon, noise_for

dp = pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")

from dp_accounting import rdp  # noqa: E402

ADD, REPLACE = dp.NeighboringRelation.ADD_OR_REMOVE_ONE, dp.NeighboringRelation.REPLACE_ONE
DIRECT = {
    "everyone": (Mechanism(100, 100), ADD, dp.GaussianDpEvent(1.1)),
    "Poisson of everyone": (Mechanism(100, 100, "poisson"), ADD, dp.GaussianDpEvent(1.1)),
    "Poisson": (Mechanism(1000, 10, "poisson"), ADD, dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.1))),
    "fixed": (Mechanism(100, 5), REPLACE, dp.SampledWithoutReplacementDpEvent(100, 5, dp.GaussianDpEvent(0.55))),
    "local": (Mechanism(100, 5, "poisson", is_local=True), REPLACE, dp.GaussianDpEvent(0.55)),
}


@pytest.mark.parametrize("name", DIRECT)
def test_epsilon_is_what_dp_accounting_says_of_so_many_rounds(name):
    mechanism, relation, event = DIRECT[name]
    accountant = rdp.RdpAccountant(neighboring_relation=relation).compose(event, 20)
    assert epsilon(mechanism, 1.1, 1e-5, 20) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-12)
    assert mechanism.relation == ("replace one client" if relation is REPLACE else "add or remove one client")


def test_the_largest_epsilon_is_that_of_its_mechanism_whichever_bound_comes_first():
    """Many mechanisms are first looked at with few orders, which sort them otherwise than all orders do."""
    releases = {Mechanism(n, 5, "poisson", unit="sample"): 400 // n for n in (10, 20, 40, 80, 160)}
    for noise in (0.4, 0.7, 1.1):
        each = {m: epsilon(m, noise, 1e-5, n) for m, n in releases.items()}
        assert all(each[m] <= epsilon(m, noise, 1e-5, n, BELOW_ALL) for m, n in releases.items())
        assert largest_epsilon(releases, noise, 1e-5) == max(each.values())
    assert largest_epsilon({}, 1.0, 1e-5) == 0
    assert largest_epsilon(releases, 0.0, 1e-5) == math.inf


def log_moment(q, noise, order):
    """log E[(p/p₀)^order] of the Poisson-sampled Gaussian, whole orders: arXiv 1908.10530, section 3.3."""
    return logsumexp(
        [
            math.log(math.comb(order, k))
            + k * math.log(q)
            + (order - k) * math.log1p(-q)
            + k * (k - 1) / (2 * noise**2)
            for k in range(order + 1)
        ]
    )


def from_moments(q, noise, steps, delta, is_tight):
    """ε by the classical conversion (arXiv 1607.00133, theorem 2) or the one of arXiv 2004.00010, proposition 12."""
    found = []
    for order in range(2, 65):
        rate = steps * log_moment(q, noise, order) / (order - 1)
        classical = rate + math.log(1 / delta) / (order - 1)
        gain = math.log1p(-1 / order) - math.log(order) / (order - 1)
        found.append(classical + gain * is_tight)
    return min(found)


PUBLISHED = {
    "Abadi et al., arXiv 1607.00133, section 3.2": (0.01, 4.0, 10_000, 1.26),
    "TensorFlow Privacy, tutorials/README.md, 60 epochs of MNIST": (256 / 60_000, 1.12, 60 * 60_000 // 256, 2.92),
    "TensorFlow Privacy, tutorials/README.md, 10 epochs of MNIST": (256 / 60_000, 1.2, 10 * 60_000 // 256, 1.20),
}


@pytest.mark.parametrize("source", PUBLISHED)
def test_textbook_cases_have_their_published_value_and_epsilon_is_the_same_bound_converted_more_tightly(source):
    """The published numbers are of the classical conversion; dp-accounting's is never larger."""
    q, noise, steps, published = PUBLISHED[source]
    classical, tight = (from_moments(q, noise, steps, 1e-5, is_tight) for is_tight in (False, True))
    assert classical == pytest.approx(published, abs=0.011)
    ours = epsilon(Mechanism(600_000, round(q * 600_000), "poisson"), noise, 1e-5, steps)
    assert ours == pytest.approx(tight, rel=0.01), "of whole orders up to 64"
    assert 0.75 * published < ours < published


def test_epsilon_grows_with_rounds_and_is_infinite_without_noise():
    spent = [epsilon(Mechanism(100, 100), 5.0, 1e-5, rounds) for rounds in range(5)]
    assert spent[0] == 0
    assert spent == sorted(set(spent))
    assert epsilon(Mechanism(10, 5), 0.0, 1e-5, 1) == math.inf


@pytest.mark.parametrize("mechanism", [Mechanism(100, 100), Mechanism(1000, 10, "poisson")], ids=["all", "Poisson"])
def test_the_noise_that_is_found_meets_epsilon_and_little_less_does_not(mechanism):
    noise = noise_for(mechanism, 2.0, 1e-5, 50)
    assert epsilon(mechanism, noise, 1e-5, 50) <= 2.0 < epsilon(mechanism, 0.99 * noise, 1e-5, 50)


def test_an_epsilon_that_hardly_any_noise_gives_is_refused():
    with pytest.raises(ValueError, match=r"and no noise multiplier from \.05 on gives that"):
        noise_for(Mechanism(100, 100), 1e9, 1e-5, 1)
