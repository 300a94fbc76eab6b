"""Rules that reject a bad measurement: INVALID ones appear in no headline and no comparison.

A problem of the *service* (too slow, refusing requests) is a result, which bounds and thresholds
judge. A problem of the *measurement* (too short, limited by the generator, wrong answers) makes it
INVALID.

The following is taken from MLPerf Inference's rules (github.com/mlcommons/inference_policies,
inference_rules.adoc, "Scenarios" and "Early Stopping"): the tail percentile of Server is 99%; a
query without an answer in time counts against it; latency starts when LoadGen scheduled the query;
the arrivals' seed is fixed and recorded; early stopping gives the number of queries that a
percentile needs. But MLPerf's runs last 600 s, and those of the profiles smoke and full 10 s and
60 s: a result here is not an MLPerf result.
"""

import math

from loadtest.generator.recorder import Tally, decoded
from loadtest.measure.result import Verdict, count_up_to, percentiles_ms
from loadtest.scenarios import Profile, Scenario

LONGEST_DRIFT = 0.10  # largest relative deviation of the last three windows from their mean
WINDOWS = 3
LEAST_ACHIEVED = 0.98  # of the requests that were due
BUSY_GENERATOR = 0.80  # largest share of a core
LARGEST_LAG = 0.10  # largest p99 of the sending delay, as a share of the reported p99 latency
CONFIDENCE = 0.99
SHARE = 0.99  # of the queries that must be under the bound
FEWEST_A_WINDOW = 100  # with fewer answers, a window's rate is mostly noise


def queries_needed(over: int) -> int:
    """The number of queries needed to conclude that 99% are under a bound, with ``over`` above it.

    This is MLPerf Inference's early stopping: the smallest n such that, if one query in a hundred
    were over the bound, the chance of seeing at most ``over`` of them is at most 1%.

    Args:
        over: Number of queries over the bound.
    """
    low, high = over + 1, 1000 * (over + 1)
    while low < high:
        middle = (low + high) // 2
        if _at_most(over, middle, 1 - SHARE) <= 1 - CONFIDENCE:
            high = middle
        else:
            low = middle + 1
    return low


def judge(tally: Tally, scenario: Scenario, profile: Profile) -> Verdict:
    """Whether the figures of a tally are valid, and the reasons if they are not."""
    reasons = []
    if tally.lost_processes:
        processes = tally.processes + tally.lost_processes
        reasons.append(
            f"{tally.lost_processes} of {processes} generator processes ended without reporting"
        )
    if tally.wrong_answers:
        reasons.append(f"{tally.wrong_answers} wrong answers")
    if not tally.in_window:
        reasons.append("no correct answer")
    if tally.window_s < 0.98 * profile.duration_s:
        reasons.append(f"measured {tally.window_s:.1f} s, expected {profile.duration_s:g} s")
    if tally.cpu_share > BUSY_GENERATOR:
        reasons.append(
            f"the generator took {100 * tally.cpu_share:.0f}% of a core (at most "
            f"{100 * BUSY_GENERATOR:.0f}%), so it was the bottleneck"
        )
    if scenario.is_steady:
        reasons += _drift(tally)
    if scenario.loop == "open":
        reasons += _open_loop(tally, scenario, profile)
    if scenario.slo_ms is not None and not scenario.overload:
        reasons += _too_few(tally, scenario.slo_ms)
    return Verdict(valid=not reasons, reasons=reasons)


def _drift(tally: Tally) -> list[str]:
    """A reason if the rate changes over the last three quarters of the measured time."""
    counts = [int(decoded(text).get_total_count()) for text in tally.windows_us]
    size = len(counts) // (WINDOWS + 1)
    if size == 0:
        return []
    windows = [sum(counts[len(counts) - (i + 1) * size :][:size]) for i in range(WINDOWS)]
    mean = sum(windows) / WINDOWS
    off = max(abs(window - mean) for window in windows) / mean if mean else 0.0
    # The standard deviation of a Poisson count is the square root of its mean.
    chance = 3 / math.sqrt(mean) if mean else 0.0
    if min(windows) >= FEWEST_A_WINDOW and off > max(LONGEST_DRIFT, chance):
        return [f"not steady: the last three windows differ by {100 * off:.0f}%"]
    return []


def _open_loop(tally: Tally, scenario: Scenario, profile: Profile) -> list[str]:
    reasons = []
    if tally.no_room:
        reasons.append(f"{tally.no_room} requests were not sent, because too many were in flight")
    offered = _mean_rate(scenario, profile) * tally.window_s * (1 - scenario.hang_up_share)
    # The number of drawn arrivals scatters around its mean: a Poisson count by its square root.
    slack = 3 * math.sqrt(offered / min(scenario.shape, 1.0))
    if (
        scenario.trace is None
        and not scenario.overload
        and tally.sent < LEAST_ACHIEVED * offered - slack
    ):
        reasons.append(f"{tally.sent} requests were sent, {offered:.0f} were due")
    p99_ms = percentiles_ms(tally.latency_us, [99])["p99"]
    lag_ms = percentiles_ms(tally.lag_us, [99])["p99"]
    if lag_ms > LARGEST_LAG * p99_ms:
        reasons.append(
            f"requests were sent late (p99 {lag_ms:.2f} ms, of a latency p99 of {p99_ms:.2f} ms)"
        )
    return reasons


def _mean_rate(scenario: Scenario, profile: Profile) -> float:
    """Requests per second that are due on average after the warm-up."""
    whole_s = profile.warmup_s + profile.duration_s
    return (scenario.rate_at(profile.warmup_s / whole_s) + scenario.rate_at(1.0)) / 2


def _too_few(tally: Tally, slo_ms: float) -> list[str]:
    total = int(decoded(tally.latency_us).get_total_count())
    total = max(tally.sent, total)  # unanswered requests count as over the bound
    over = total - count_up_to(tally.latency_us, slo_ms)
    if over > (1 - SHARE) * total:
        return []  # a service that is too slow is a result, not an invalid measurement
    needed = queries_needed(int(over))
    if total < needed:
        return [
            f"{total} requests with {over} over the bound are too few to judge p99; "
            f"{needed} are needed"
        ]
    return []


def _at_most(count: int, of: int, share: float) -> float:
    """The binomial probability of at most ``count`` hits in ``of`` trials with chance ``share``."""
    log_hit, log_miss = math.log(share), math.log1p(-share)
    return sum(
        math.exp(
            math.lgamma(of + 1)
            - math.lgamma(k + 1)
            - math.lgamma(of - k + 1)
            + k * log_hit
            + (of - k) * log_miss
        )
        for k in range(count + 1)
    )
