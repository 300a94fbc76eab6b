"""Which values an input may have: declared on the command line, or inferred from the samples.

Edge cases use only those values. A token id outside the vocabulary, or a mask that hides every
position, would prove nothing: the network's output for it is not defined.
"""

import re
from collections.abc import Sequence

import numpy as np

from export.bundle.manifest import Domain, SubjectError, TensorSpec
from export.bundle.metrics import Array, Arrays

SMALLEST, LARGEST, SHUFFLED = "all smallest", "all largest", "shuffled"
PIXEL = Domain(kind="range", low=0, high=255)
PICTURE_NDIM = 4  # batch, channels, height, width; or the channels last
PICTURE_CHANNELS = {1, 3}

_TENSOR = re.compile(r"(?P<name>\w+)=(?P<datatype>\w+)\[(?P<sizes>[^\]]*)\](:(?P<domain>.+))?")
_SIZE = re.compile(r"\s*((?P<axis>[A-Za-z_]\w*)=)?(?P<low>-?\d+)(\.\.(?P<high>\d+))?\s*")
_DOMAIN = re.compile(r"(?P<kind>range|length)=(?P<low>[^.]+(\.\d+)?)\.\.(?P<high>.+)")
_TOKENS = re.compile(r"tokens=(?P<words>\d+)")


def parse_input(text: str) -> TensorSpec:
    """Parse the declaration of an input.

    Args:
        text: NAME=DATATYPE[SIZES] or NAME=DATATYPE[SIZES]:DOMAIN. A size is a number, -1 for the
            batch, LOW..HIGH for a variable axis, or AXIS=LOW..HIGH: axes with one name are equal.
            The domain is range=LOW..HIGH, tokens=WORDS, mask or length=LOW..HIGH, e.g.
            "ids=INT64[-1,tokens=4..128]:tokens=30522".

    Raises:
        ValueError: The text does not have that form.
    """
    found = _TENSOR.fullmatch(text)
    if not found:
        raise ValueError("not of the form NAME=DATATYPE[-1,...] or NAME=DATATYPE[-1,...]:DOMAIN")
    shape: list[int] = []
    bounds: dict[int, tuple[int, int]] = {}
    axes: dict[int, str] = {}
    for index, size in enumerate(found["sizes"].split(",")):
        part = _SIZE.fullmatch(size)
        if not part:
            raise ValueError(f"{size!r} is not a size; expected a number, 4..128 or NAME=4..128")
        variable = part["high"] is not None
        shape.append(-1 if variable else int(part["low"]))
        if variable:
            bounds[index] = (int(part["low"]), int(part["high"]))
            axes[index] = part["axis"] or f"{found['name']}_{index}"
        elif part["axis"]:
            raise ValueError(f"{size!r} names an axis that is not variable; expected LOW..HIGH")
    return TensorSpec.model_validate(
        {
            "name": found["name"],
            "datatype": found["datatype"],
            "shape": shape,
            "bounds": bounds,
            "axes": axes,
            "domain": None if found["domain"] is None else _parse_domain(found["domain"]),
        }
    )


def _parse_domain(text: str) -> Domain:
    if text == "mask":
        return Domain(kind="mask")
    if tokens := _TOKENS.fullmatch(text):
        return Domain(kind="tokens", low=0, high=int(tokens["words"]) - 1)
    if found := _DOMAIN.fullmatch(text):
        kind = "range" if found["kind"] == "range" else "length"
        return Domain(kind=kind, low=float(found["low"]), high=float(found["high"]))
    raise ValueError(
        f"{text!r} is not a domain; expected range=LOW..HIGH, tokens=WORDS, mask or "
        "length=LOW..HIGH"
    )


def domain_of(spec: TensorSpec, array: Array) -> Domain | None:
    """The declared domain, else one inferred from the samples; None if it cannot be inferred.

    It is inferred for pixels (uint8, and float pictures in the observed range), masks (ones, then
    zeros) and ids (integers in the observed range). Without a domain, edge cases are whole samples.
    """
    if spec.domain is not None:
        return spec.domain
    if is_prefix_mask(array) and not array.all():
        return Domain(kind="mask")
    if array.dtype == np.uint8:
        return PIXEL
    picture = array.ndim == PICTURE_NDIM and {array.shape[1], array.shape[3]} & PICTURE_CHANNELS
    if array.dtype.kind in "iu" or (picture and array.dtype.kind == "f"):
        return Domain(kind="range", low=float(array.min()), high=float(array.max()))
    return None


def is_prefix_mask(array: Array) -> bool:
    """True if each sample is one or more ones, followed by zeros."""
    if array.ndim < 2:  # noqa: PLR2004 - samples and positions
        return False
    return bool(
        (array[..., 0] == 1).all()
        and (array[..., 1:] <= array[..., :-1]).all()
        and np.isin(array, (0, 1)).all()
    )


def require_domain(spec: TensorSpec, array: Array) -> None:
    """Refuse samples with values outside their declared domain.

    Raises:
        SubjectError: There are such values; the message states the found and the declared ones.
    """
    declared = spec.domain
    if declared is None:
        return
    if declared.kind == "mask":
        fits, expected = is_prefix_mask(array), "one or more ones, then zeros, in each sample"
    else:
        low, high = declared.low, declared.high
        fits = bool((array >= low).all()) and bool((array <= high).all())
        expected = f"{declared.kind} from {low:g} to {high:g}"
    if not fits:
        raise SubjectError(
            f"the samples of {spec.name} have values from {array.min():g} to {array.max():g}; "
            f"declared: {expected}"
        )


def edge_cases(specs: Sequence[TensorSpec], arrays: Arrays) -> dict[str, Arrays]:
    """Edge cases by name, one sample each: all inputs smallest, all largest, and all shuffled.

    Args:
        specs: The inputs.
        arrays: Samples of them.

    Returns:
        The cases; empty if no input has a domain: the samples then cover all known values.
    """
    if all(domain_of(spec, arrays[spec.name]) is None for spec in specs):
        return {}
    values = {spec.name: edge_values(spec, arrays[spec.name]) for spec in specs}
    return {
        case: {name: cases[case] for name, cases in values.items()}
        for case in (SMALLEST, LARGEST, SHUFFLED)
    }


def edge_values(spec: TensorSpec, array: Array) -> Arrays:
    """One input's edge cases by name, [...] each: from its domain, else whole observed samples."""
    domain, shape = domain_of(spec, array), array.shape[1:]
    middle = array[len(array) // 2]
    if domain is None:
        order = np.argsort(array.reshape(len(array), -1).sum(axis=1), kind="stable")
        return {SMALLEST: array[order[0]], LARGEST: array[order[-1]], SHUFFLED: middle}
    if domain.kind == "mask":
        first = np.zeros(shape, array.dtype)
        first[..., 0] = 1
        return {SMALLEST: first, LARGEST: np.ones(shape, array.dtype), SHUFFLED: middle}
    shuffled = np.random.default_rng(0).permutation(middle.reshape(-1)).reshape(shape)
    low, high = domain.low, domain.high
    if domain.kind == "length":  # a cropped block's largest length is below the domain's
        low, high = array.min(), min(float(high or 0), float(array.max()))
    return {
        SMALLEST: np.full(shape, low, array.dtype),
        LARGEST: np.full(shape, high, array.dtype),
        SHUFFLED: shuffled,
    }


def shuffle_values(spec: TensorSpec, array: Array, generator: np.random.Generator) -> Array:
    """Other values of the same domain: shuffled within each sample, or whole samples swapped."""
    domain = domain_of(spec, array)
    if domain is None or domain.kind == "mask":
        return np.roll(array, 1, axis=0)
    return generator.permuted(array.reshape(len(array), -1), axis=1).reshape(array.shape)
