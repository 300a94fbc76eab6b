"""Declarations of inputs, and edge cases that contain only values that an input may have."""

import numpy as np
import pytest

from export.bundle.manifest import Domain, SubjectError, TensorSpec
from export.model.domains import (
    LARGEST,
    SHUFFLED,
    SMALLEST,
    domain_of,
    edge_cases,
    edge_values,
    parse_input,
    require_domain,
    shuffle_values,
)

IDS = np.array([[3, 1, 4, 0], [2, 7, 1, 8], [5, 5, 5, 0]], np.int64)
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], np.int64)
NUMBERS = np.array([[0.5, -2], [3, 4], [-1, -1.5]], np.float32)


def _spec(array: np.ndarray, domain: Domain | None = None) -> TensorSpec:
    words = {"i": "INT64", "f": "FP32", "u": "UINT8"}
    shape = (-1, *array.shape[1:])
    return TensorSpec.model_validate(
        {"name": "x", "datatype": words[array.dtype.kind], "shape": shape, "domain": domain}
    )


def test_a_declaration_says_sizes_axes_and_values() -> None:
    """Variable axes have bounds and a name, and the domain follows the shape."""
    ids = parse_input("ids=INT64[-1,tokens=4..128]:tokens=30522")
    assert (ids.shape, ids.bounds, ids.axes) == ((-1, -1), {1: (4, 128)}, {1: "tokens"})
    assert ids.domain == Domain(kind="tokens", low=0, high=30521)
    unnamed = parse_input("x=FP32[-1,3,8..16,8..32]:range=-1.5..1e3")
    assert unnamed.axes == {2: "x_2", 3: "x_3"}
    assert unnamed.domain == Domain(kind="range", low=-1.5, high=1000)
    assert parse_input("m=INT64[-1,8]:mask").domain == Domain(kind="mask")
    assert parse_input("n=INT64[-1]:length=1..8").domain == Domain(kind="length", low=1, high=8)
    plain = parse_input("images=UINT8[-1,28,28]")
    assert (plain.bounds, plain.axes, plain.domain) == ({}, {}, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ids", "not of the form"),
        ("ids=INT64[-1,a]", "'a' is not a size"),
        ("ids=INT64[-1,tokens=4]", "not variable"),
        ("ids=INT64[-1,9..4]", "the bounds 9 to 4"),
        ("ids=INT64[-1,4]:words", "is not a domain"),
        ("ids=INT64[-1,4]:tokens=0", "from 0.0 to -1.0"),
        ("ids=INT64[-1,4]:range=2..1", "the smaller one first"),
        ("ids=INT64[-1,4]:range=a..1", "could not convert"),
        ("ids=INT64[-1,4]:length=0..4", "length starts at 0; expected at least 1"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(text: str, words: str) -> None:
    """The message quotes the declaration."""
    with pytest.raises(ValueError, match=words):
        parse_input(text)


def test_ids_are_constant_or_shuffled_observed_ids() -> None:
    """Without a declaration, edge cases use only observed ids, or a sample's ids shuffled."""
    cases = edge_values(_spec(IDS), IDS)
    assert cases[SMALLEST].tolist() == [0] * 4
    assert cases[LARGEST].tolist() == [8] * 4
    assert sorted(cases[SHUFFLED]) == sorted(IDS[1])


def test_declared_ids_reach_the_vocabulary_s_end() -> None:
    """With 50 declared words, the largest id is 49."""
    spec = _spec(IDS, Domain(kind="tokens", low=0, high=49))
    assert edge_values(spec, IDS)[LARGEST].tolist() == [49] * 4


def test_a_mask_never_hides_everything() -> None:
    """A mask is recognised as ones followed by zeros, and has at least one 1."""
    assert domain_of(_spec(MASK), MASK) == Domain(kind="mask")
    cases = edge_values(_spec(MASK), MASK)
    assert cases[SMALLEST].tolist() == [1, 0, 0, 0]
    assert cases[LARGEST].tolist() == [1, 1, 1, 1]
    assert cases[SHUFFLED].tolist() in MASK.tolist()
    for dtype in (np.float32, np.uint8):
        other = MASK.astype(dtype)
        assert edge_values(_spec(other), other)[SMALLEST].tolist() == [1, 0, 0, 0]
    ones = np.ones_like(MASK)  # no evidence that a 0 is allowed
    assert domain_of(_spec(ones), ones) == Domain(kind="range", low=1, high=1)


def test_numbers_of_no_known_domain_are_whole_observed_samples() -> None:
    """Their elements are never filled in, and alone they give no edge case."""
    assert domain_of(_spec(NUMBERS), NUMBERS) is None
    for case in edge_values(_spec(NUMBERS), NUMBERS).values():
        assert case.tolist() in NUMBERS.tolist()
    assert edge_cases([_spec(NUMBERS)], {"x": NUMBERS}) == {}


def test_lengths_and_pixels_stay_within_what_they_may_be() -> None:
    """Lengths stay within the samples' own, and uint8 counts as pixels in 0..255."""
    lengths = np.array([2, 4, 3])
    spec = _spec(lengths, Domain(kind="length", low=1, high=9))
    cases = edge_values(spec, lengths)
    assert (int(cases[SMALLEST]), int(cases[LARGEST])) == (2, 4)
    pixels = np.full((2, 3), 7, np.uint8)
    assert edge_values(_spec(pixels), pixels)[LARGEST].tolist() == [255] * 3


@pytest.mark.parametrize(
    ("array", "domain"),
    [
        (IDS, Domain(kind="tokens", low=0, high=7)),
        (IDS, Domain(kind="mask")),
        (MASK * 0, Domain(kind="mask")),
        (NUMBERS, Domain(kind="range", low=-1, high=9)),
    ],
)
def test_samples_beyond_their_domain_are_refused(array: np.ndarray, domain: Domain) -> None:
    """Samples must match the declaration."""
    with pytest.raises(SubjectError, match=r"the samples of x have values from .* declared: "):
        require_domain(_spec(array, domain), array)
    require_domain(_spec(MASK, Domain(kind="mask")), MASK)


def test_neighbours_in_a_batch_are_of_the_domain_too() -> None:
    """Ids are shuffled within a sample, and masks come from another sample."""
    generator = np.random.default_rng(0)
    assert np.sort(shuffle_values(_spec(IDS), IDS, generator)).tolist() == np.sort(IDS).tolist()
    assert shuffle_values(_spec(MASK), MASK, generator).tolist() == [
        *MASK[2:].tolist(),
        *MASK[:2].tolist(),
    ]
