"""Generate the report's sentences from the results of a comparison."""

from collections.abc import Iterator, Sequence

from training.compare.schema import (
    Alternative,
    Comparison,
    Curve,
    Group,
    GroupCurve,
    GroupPair,
    SizeRun,
)
from training.compare.significance import SIGNIFICANT
from training.evaluation.statistics import Interval, Spread

POINTS = 100
LEAST_P = 1e-4  # smaller p values are written as powers of ten
ALIKE = 0.05  # ratios this close to 1 are not reported as a difference
STATED_SHIFT_PX = 4.0
PAIR = 2
WHOLE_RATIO = 10  # ratios from here on have no decimals


def percent(share: float) -> str:
    """Format a share in per cent, with two decimals."""
    return f"{POINTS * share:.2f}%"


def over_seeds(spread: Spread) -> str:
    """Format mean and standard deviation in per cent."""
    if spread.deviation is None:
        return f"{percent(spread.mean)} (one seed)"
    return f"{POINTS * spread.mean:.2f} ± {POINTS * spread.deviation:.2f}%"


def points(difference: float) -> str:
    """Format a difference of accuracies in percentage points, with its sign."""
    return f"{POINTS * difference:+.2f} points"


def points_interval(interval: Interval | None) -> str:
    """Format an interval in points; None means a group of one seed, or seeds that all agree."""
    if interval is None:
        return "spread over seeds unknown"
    return f"{POINTS * interval.low:+.2f} to {POINTS * interval.high:+.2f}"


def times(ratio: float) -> str:
    """Format a ratio: "1.64 x"."""
    digits = 0 if ratio >= WHOLE_RATIO else 2
    return f"{ratio:.{digits}f} x"


def p_text(p_value: float) -> str:
    """Format a p value so that it is never shown as 0."""
    return f"{p_value:.1e}" if p_value < LEAST_P else f"{p_value:.4f}"


def listed(names: Sequence[str]) -> str:
    """Join names for a sentence: "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def title(comparison: Comparison) -> str:
    """The page's heading."""
    names = [group.name for group in comparison.groups]
    return " against ".join(names) if len(names) == PAIR else f"Comparison of {listed(names)}"


def verdict(comparison: Comparison) -> str:
    """The page's first sentences: each group against the base, in short if there are several."""
    base = comparison.group(comparison.base)
    lead = (
        f"{base.name} classifies {percent(base.accuracy.mean)} of {comparison.test_name} correctly"
    )
    others = [one for one in comparison.alternatives if one.name != base.name]
    if not others:
        return f"{lead}. No other group was given to compare it with."
    if len(others) == 1:
        return f"{lead}. {_against(comparison, others[0], base)}"
    ordered = sorted(others, key=lambda one: one.difference, reverse=True)
    texts = [
        f"{one.name} {points(one.difference)} ({points_interval(one.interval)}; "
        f"{_significance(one)})"
        for one in ordered
    ]
    return f"{lead}. Compared with it: {'; '.join(texts)}."


def _against(comparison: Comparison, one: Alternative, base: Group) -> str:
    group = comparison.group(one.name)
    if one.interval is None:
        known = _significance(one)
    else:
        known = f"95% interval over seeds {points_interval(one.interval)}: {_significance(one)}"
    time = group.cost.times[0]  # in batches of one image
    return (
        f"{group.name} classifies {percent(group.accuracy.mean)} correctly: "
        f"{points(one.difference)} ({known}), "
        f"with {times(one.parameters_ratio)} the parameters, {times(one.multiply_adds_ratio)} the "
        f"multiply-adds and {times(time.ratio)} the time per image of {base.name}."
    )


def _significance(one: Alternative) -> str:
    """Whether the difference is significant at 0.05, corrected for the number of groups."""
    if one.p_holm is None:
        return "one seed, or seeds that all agree, do not show the effect of the seed"
    p = f"p = {p_text(one.p_holm)} after Holm's correction"
    return f"significant, {p}" if one.p_holm < SIGNIFICANT else f"not significant, {p}"


def mcnemar(pair: GroupPair) -> str:
    """How many pairs of seeds differ significantly, and in how many each group is ahead."""
    count = len(pair.pairs)
    hits = round(pair.significant * count)
    if pair.first == pair.second:
        return (
            f"{pair.first} against itself, two seeds at a time: {hits} of {count} "
            f"{_pairs(count)} p < 0.05. Only the seed differs."
        )
    first_ahead = sum(p.only_first > p.only_second for p in pair.pairs)
    second_ahead = sum(p.only_first < p.only_second for p in pair.pairs)
    return (
        f"{pair.first} against {pair.second}: {hits} of {count} {_pairs(count)} p < 0.05 "
        f"({pair.significant:.0%}); {pair.first} classifies more images correctly in "
        f"{first_ahead} of {count}, {pair.second} in {second_ahead}. {_p_range(pair)}"
    )


def _p_range(pair: GroupPair) -> str:
    least = min(pair.pairs, key=lambda p: p.p_value)
    most = max(pair.pairs, key=lambda p: p.p_value)
    if least is most:
        return f"p is {p_text(least.p_value)} (seeds {least.first_seed} and {least.second_seed})."
    return (
        f"p lies between {p_text(least.p_value)} (seeds {least.first_seed} and "
        f"{least.second_seed}) and {p_text(most.p_value)} (seeds {most.first_seed} and "
        f"{most.second_seed})."
    )


def _pairs(count: int) -> str:
    return "pair has" if count == 1 else "pairs have"


def calibration(comparison: Comparison) -> Iterator[str]:
    """For each group: whether it is overconfident, and what temperature scaling changes."""
    for group in comparison.groups:
        found = [network.calibration.temperature for network in group.networks]
        mean = sum(found) / len(found)
        way = "overconfident" if mean > 1 + ALIKE else "underconfident" if mean < 1 - ALIKE else ""
        state = f"on average {way}" if way else "well calibrated"
        change = group.error_after.mean - group.error_before.mean
        yield (
            f"{group.name}: temperature {', '.join(f'{t:.2f}' for t in found)}, so it is {state} "
            f"on validation images; on test images the expected calibration error goes from "
            f"{percent(group.error_before.mean)} to {percent(group.error_after.mean)} "
            f"({'better' if change < 0 else 'not better'})."
        )
        if any(network.calibration.at_bound for network in group.networks):
            yield (
                f"{group.name}: a temperature is the bound of its search and not an estimate, "
                "because the validation images are too few or too easy to fit one."
            )


def robustness(curve: Curve) -> str:
    """The levels at which each group falls below 90%, and where the groups are furthest apart."""
    texts: dict[str, list[str]] = {}
    for group in curve.groups:
        texts.setdefault(_fall(curve, group), []).append(group.name)
    falls = [f"{listed(names)}: {fall}" for fall, names in texts.items()]
    return f"{'; '.join(falls)}. {_greatest_gap(curve)}"


def _fall(curve: Curve, group: GroupCurve) -> str:
    down, up = group.falls_below
    if down == curve.neutral:
        return "below 90% even without distortion"
    if down is None and up is None:
        return "90% or more at every level"
    if curve.levels[0] == curve.neutral:
        return f"below 90% from {up:.3g} {curve.unit} on"
    places = [
        f"{word} {place:.3g}"
        for word, place in (("under", down), ("over", up))
        if place is not None
    ]
    return f"below 90% {' and '.join(places)} {curve.unit}"


def _greatest_gap(curve: Curve) -> str:
    if len(curve.groups) == 1:
        return ""
    means = [[group.accuracy[i].mean for group in curve.groups] for i in range(len(curve.levels))]
    gaps = [max(values) - min(values) for values in means]
    place = gaps.index(max(gaps))
    best, worst = (means[place].index(chosen(means[place])) for chosen in (max, min))
    if best == worst:
        return "The groups are equal at every level."
    return (
        f"The groups are furthest apart at {curve.levels[place]:g} {curve.unit}: "
        f"{curve.groups[best].name} classifies {percent(means[place][best])} correctly, "
        f"{curve.groups[worst].name} {percent(means[place][worst])}."
    )


def invariance(curve: Curve) -> str:
    """How many images keep their predicted digit when shifted."""
    level = min(curve.levels, key=lambda one: abs(one - STATED_SHIFT_PX))
    place = curve.levels.index(level)
    kept = listed([f"{percent(g.unchanged[place])} ({g.name})" for g in curve.groups])
    return (
        "A network that is invariant to translation predicts the same digit for the shifted image "
        f"as for the unshifted one, right or wrong. At {level:g} {curve.unit} it does for "
        f"{kept} of the images, and {percent(curve.ink_kept[place])} of the ink is still in the "
        f"picture; at {curve.levels[-1]:g} {curve.unit}, {percent(curve.ink_kept[-1])} of it is."
    )


def augmentation(comparison: Comparison) -> str:
    """How far training images were augmented, since robustness to this may have been learned."""
    found: dict[str, str] = {}
    for group in comparison.groups:
        shift, turn, scale = (
            group.conditions.get(f"augment.{name}", 0)
            for name in ("shift_px", "rotation_deg", "scale")
        )
        what = f"shift up to {shift:g} px, rotation {turn:g} degrees, scale {scale:.0%}"
        found[group.name] = what if shift or turn or scale else "none"
    kinds = set(found.values())
    seen = kinds.pop() if len(kinds) == 1 else "; ".join(map(": ".join, found.items()))
    return (
        f"Distortions of the training images: {seen}. Up to these levels, robustness may have been "
        "learned from examples; beyond them, it was not."
    )


def learning_curve(runs: Sequence[SizeRun]) -> str:
    """The accuracy with the fewest and with the most training images."""
    parts = []
    sizes = {run.size for run in runs}
    for size in sorted({min(sizes), max(sizes)}):
        found = [run for run in runs if run.size == size]
        texts = listed([f"{run.group} {percent(run.accuracy)}" for run in found])
        parts.append(f"with {size:,} training images: {texts}")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."
