"""The report's page: each section says what it is and how to read it, then what was found."""

import statistics
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from training.compare import pictures, words
from training.compare.html_parts import (
    box,
    contents,
    facts,
    folded,
    page,
    panels,
    paragraph,
    picture,
    section,
    subheading,
    table,
)
from training.compare.page_images import Inside, curve_parts, differing_parts, inside_parts
from training.compare.result import Comparison, GroupPair


def render(comparison: Comparison, test_images: Tensor, inside: Sequence[Inside]) -> str:
    """The whole page.

    Args:
        comparison: All figures.
        test_images: uint8 [N, 28, 28], the images that the figures speak of.
        inside: One for each group, about the image ``comparison.picture_index``.
    """
    chapters: dict[tuple[str, str], Callable[[], Iterator[str]]] = {
        ("costs", "What each buys and costs"): lambda: _costs(comparison),
        ("accuracy", "Accuracy"): lambda: _accuracy(comparison),
        ("chance", "Difference or chance?"): lambda: _chance(comparison),
        ("calibration", "Calibration"): lambda: _calibration(comparison),
        ("invariance", "Distorted images"): lambda: curve_parts(comparison, test_images),
        ("sizes", "Training-set size"): lambda: _sizes(comparison),
        ("inside", "Inside the networks"): lambda: inside_parts(comparison, inside),
        ("differing", "Where they differ"): lambda: differing_parts(comparison, test_images),
        ("about", "How it was measured"): lambda: _about(comparison),
    }
    bodies = {key: list(body()) for key, body in chapters.items()}
    shown = {key: body for key, body in bodies.items() if body}
    seeds = sum(len(group.networks) for group in comparison.groups)
    parts = [
        paragraph(words.verdict(comparison), "verdict"),
        box("Read the comparison with this in mind", comparison.warnings),
        contents(list(shown)),
    ]
    for (anchor, title), body in shown.items():
        parts += [section(anchor, title, ""), *body]
    note = f"{seeds} networks on {comparison.test_name}. Base of all ratios: {comparison.base}."
    return page(words.title(comparison), note, parts)


def _costs(comparison: Comparison) -> Iterator[str]:
    yield paragraph(
        "Each group against the base. The difference is of mean accuracies; its 95% interval "
        "(Welch) says how far other seeds would move it. p is Welch's test of no difference, "
        "corrected for the number of groups (Holm): below 0.05 the difference is significant. "
        "Multiply-adds are of one image. Times, on one thread, are ratios to the base in "
        "interleaved rounds (median), for the machine is shared with others: ratios hold, "
        "microseconds do not."
    )
    rows = []
    for one in comparison.alternatives:
        group = comparison.group(one.name)
        cost, is_base = group.cost, one.name == comparison.base
        difference = f"{words.points(one.difference)} ({words.points_interval(one.interval)})"
        rows.append(
            [
                one.name,
                words.over_seeds(group.accuracy),
                "base" if is_base else difference,
                "" if one.p_holm is None else words.p_text(one.p_holm),
                _with_ratio(cost.parameters, one.parameters_ratio, is_base),
                _with_ratio(cost.multiply_adds, one.multiply_adds_ratio, is_base),
                *(words.times(time.ratio) for time in cost.times),
            ]
        )
    batches = [time.batch for time in comparison.groups[0].cost.times]
    yield table(
        [
            *(
                "group",
                "accuracy",
                "difference (95% interval)",
                "p (Holm)",
                "parameters",
                "multiply-adds",
            ),
            *(f"time, batch {batch}" for batch in batches),
        ],
        rows,
    )


def _with_ratio(count: int, ratio: float, is_base: bool) -> str:
    return f"{count:,}" if is_base else f"{count:,} ({words.times(ratio)})"


def _accuracy(comparison: Comparison) -> Iterator[str]:
    yield paragraph(
        "Two kinds of uncertainty: Wilson's interval (lines) says how far another test set would "
        "move one network's accuracy; the standard deviation over seeds (±) says how far another "
        "run would. Networks answer the same images, so overlapping lines do not mean that two "
        "are alike: the next section asks that."
    )
    rows = [
        [
            group.name,
            str(len(group.networks)),
            words.over_seeds(group.accuracy),
            f"{words.percent(group.accuracy.low)} to {words.percent(group.accuracy.high)}",
            f"{words.percent(group.networks[0].interval.low)} to "
            f"{words.percent(group.networks[0].interval.high)}",
        ]
        for group in comparison.groups
    ]
    yield table(
        ["group", "seeds", "mean ± deviation", "least to greatest", "Wilson, first seed"], rows
    )
    yield picture(pictures.accuracy_figure(comparison.groups), "Accuracy of each network")
    yield subheading("Each digit")
    yield paragraph(
        "Misread images of each digit; lower is better. Small points are seeds, the large one is "
        "their mean. A digit has about a tenth of the images, so its points scatter more."
    )
    yield picture(pictures.digits_figure(comparison.groups), "Error rate of each digit")
    yield subheading("Confusions")
    yield paragraph(
        "Rows are what the image shows, columns what was read; numbers are images, of all seeds "
        "together. Only mistakes are coloured, on one scale for all groups."
    )
    yield panels(
        [
            picture(figure, f"Confusion matrix of {group.name}")
            for group, figure in zip(
                comparison.groups, pictures.confusion_figures(comparison.groups), strict=True
            )
        ]
    )


def _chance(comparison: Comparison) -> Iterator[str]:
    yield paragraph(
        "McNemar's exact test (McNemar 1947; Dietterich 1998) looks at the images that one network "
        "alone reads rightly: were both equally good, each would have half of them. p is how often "
        "chance would part them at least so unevenly. It judges two networks, not two "
        "architectures, hence every pair of seeds; the pairs share networks and are not "
        "independent, and of many pairs of equals about 5% have p < 0.05 all the same."
    )
    for pair in comparison.pairs:
        yield paragraph(words.mcnemar_sentence(pair), "found")
    rows = [row for pair in comparison.pairs for row in _pair_rows(pair)]
    content = table(["pair", "only the first right", "only the second right", "p"], rows)
    yield folded(f"Every pair of networks ({len(rows)})", content)


def _pair_rows(pair: GroupPair) -> Iterator[list[str]]:
    for one in pair.pairs:
        yield [
            f"{pair.first}, seed {one.first_seed} | {pair.second}, seed {one.second_seed}",
            f"{one.only_first:,}",
            f"{one.only_second:,}",
            words.p_text(one.p_value),
        ]


def _calibration(comparison: Comparison) -> Iterator[str]:
    yield paragraph(
        "Of the images read with 80% confidence, 80% should be read rightly: points on the dotted "
        "line. Below it a network is too sure, above it not sure enough. The expected calibration "
        "error is the mean gap, weighted by images (15 bins; at 99.5% nearly all images are in one "
        "of them, so read it beside the negative log-likelihood and the Brier score, which need no "
        "bins; lower is better). Temperature scaling (Guo et al. "
        f"2017) divides the logits by one number, fitted on {comparison.validation_images:,} "
        "validation images alone; no label changes. Hollow points are of fewer than "
        f"{pictures.FEW_IMAGES} images and mean little."
    )
    for sentence in words.calibration_sentences(comparison):
        yield paragraph(sentence, "found")
    yield table(
        ["mean over seeds", "negative log-likelihood", "Brier score", "calibration error"],
        list(_scores(comparison)),
    )
    yield panels(
        [
            picture(pictures.reliability_figure(group, number), f"Reliability of {group.name}")
            for number, group in enumerate(comparison.groups)
        ]
    )


def _scores(comparison: Comparison) -> Iterator[list[str]]:
    for group in comparison.groups:
        for state, when in (("as trained", "before"), ("temperature-scaled", "after")):
            means = [
                statistics.fmean(
                    getattr(network.calibration, f"{score}_{when}") or 0.0
                    for network in group.networks
                )
                for score in ("loss", "brier")
            ]
            error = group.error_before if when == "before" else group.error_after
            cells = [f"{mean:.4f}" for mean in means]
            yield [f"{group.name}, {state}", *cells, words.percent(error.mean)]


def _sizes(comparison: Comparison) -> Iterator[str]:
    if not comparison.sizes:
        return
    run = comparison.sizes[0]
    yield paragraph(
        "Each point is one small run of the group's config with so many labelled images, a tenth "
        f"of which validates it: {run.epochs} epochs of {run.epoch_images:,} images each, whatever "
        "the size, so that all runs make equally many updates; a smaller part is repeated (and "
        "distorted anew, where the config says so). Parts are nested. One seed a point: steps of a "
        "few tenths of a point may be chance."
    )
    yield paragraph(words.sizes_sentence(comparison.sizes), "found")
    yield picture(pictures.sizes_figure(comparison.sizes), "Errors over training-set size")


def _about(comparison: Comparison) -> Iterator[str]:
    networks = ", ".join(
        f"{network.checkpoint} (seed {network.seed})"
        for group in comparison.groups
        for network in group.networks
    )
    yield facts(
        [
            ("checkpoints", networks),
            ("images", f"{comparison.data_name}, sha256 {comparison.data_sha256}"),
            ("device", comparison.device),
            ("versions", ", ".join(f"{n} {v}" for n, v in comparison.versions.items())),
            ("commit", comparison.commit),
        ]
    )
    rows = [
        [
            group.name,
            str(time.batch),
            f"{time.us_per_image:,.0f}",
            words.times(time.ratio),
            f"{time.interval.low:.2f} to {time.interval.high:.2f}",
        ]
        for group in comparison.groups
        for time in group.cost.times
    ]
    yield subheading("Times")
    columns = ["group", "batch", "µs per image", "ratio to the base", "middle half of the rounds"]
    yield table(columns, rows)
    yield subheading("Configs")
    yield facts(
        [
            (name, ", ".join(f"{key} {value}" for key, value in values.items()))
            for group in comparison.groups
            for name, values in (
                (group.name, group.architecture),
                ("trained with", group.conditions),
            )
        ]
    )
