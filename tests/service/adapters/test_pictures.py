"""Uploads are converted to 28x28 images of ink on background, or refused with the reason."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.bundle.golden import Golden
from service.adapters.digits import convert_picture, decode_digit
from service.protocol.errors import InvalidInputError, NothingDrawnError, PayloadTooLargeError
from tests.tiny import SERVED_BUNDLES

DIGIT = Path(__file__).parent.parent / "digit.png"
MAX_PIXELS = 1_000_000
GOLDEN = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz")
# By EXIF orientation: the transform that turns an upright picture as the camera was held.
TURNED_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _file(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


@pytest.fixture
def digit() -> np.ndarray:
    return np.asarray(Image.open(DIGIT))


def test_an_mnist_image_passes_bit_for_bit(digit: np.ndarray) -> None:
    """A 28x28 greyscale PNG with light ink is unchanged."""
    pixels = decode_digit(DIGIT.read_bytes(), MAX_PIXELS)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, digit)
    for image in GOLDEN.inputs["images"]:
        assert np.array_equal(decode_digit(_file(Image.fromarray(image)), MAX_PIXELS), image)


def test_a_digit_that_touches_the_rim_passes_too(digit: np.ndarray) -> None:
    """MNIST's digits may touch the edge, but a side that is light all along is not MNIST's."""
    touching = digit.copy()
    touching[0, 10:16] = 255
    assert np.array_equal(convert_picture(Image.fromarray(touching)), touching)
    touching[0] = 255
    assert not np.array_equal(convert_picture(Image.fromarray(touching)), touching)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "LA"])
def test_every_mode_gives_the_same_drawing(mode: str, digit: np.ndarray) -> None:
    """A black and white drawing gives the same image in any colour mode."""
    sharp = np.where(digit > 127, 255, 0).astype(np.uint8)
    image = Image.fromarray(sharp).convert(mode)
    assert np.array_equal(convert_picture(image), sharp)


def test_ink_on_light_paper_is_inverted(digit: np.ndarray) -> None:
    """A dark drawing on light paper is inverted exactly."""
    assert np.array_equal(decode_digit(_file(Image.fromarray(255 - digit)), MAX_PIXELS), digit)


def test_transparent_paper_is_white(digit: np.ndarray) -> None:
    """Black ink on a transparent background is read as ink on white paper."""
    rgba = np.zeros((28, 28, 4), np.uint8)
    rgba[..., 3] = digit
    assert np.abs(convert_picture(Image.fromarray(rgba)).astype(int) - digit).max() <= 1


def test_sixteen_bits_become_eight(digit: np.ndarray) -> None:
    """A 16-bit greyscale PNG keeps its upper eight bits."""
    deep = Image.fromarray(digit.astype(np.uint16) * 257)
    assert np.array_equal(decode_digit(_file(deep), MAX_PIXELS), digit)


def test_a_transparent_drawing_shows_whatever_its_ink(digit: np.ndarray) -> None:
    """Light ink on a transparent background is read as on a dark one, not lost on white paper."""
    rgba = np.full((28, 28, 4), 255, np.uint8)
    rgba[..., 3] = digit
    assert np.abs(convert_picture(Image.fromarray(rgba)).astype(int) - digit).max() <= 1


def test_paper_with_transparent_corners_is_paper(digit: np.ndarray) -> None:
    """Transparent areas around a cut-out sheet, light or dark, are filled like the sheet."""
    for sheet in (digit, 255 - digit):
        rgba = np.dstack([sheet] * 3 + [np.full((28, 28), 255, np.uint8)])
        rgba[:3, :3] = rgba[-3:, -3:] = 0
        assert np.array_equal(convert_picture(Image.fromarray(rgba)), digit)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, digit: np.ndarray) -> None:
    """A photo with an EXIF orientation gives the same image as the upright photo."""
    upright = Image.fromarray(np.kron(digit, np.ones((10, 10), np.uint8)))
    back = TURNED_BY.get(orientation)
    lying = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = decode_digit(_file(lying, exif=exif), MAX_PIXELS)
    assert np.array_equal(turned, decode_digit(_file(upright), MAX_PIXELS))


def test_of_an_animated_png_the_first_picture_is_read(digit: np.ndarray) -> None:
    """The picture used is the one that a viewer without animation shows."""
    frames = [Image.fromarray(digit[:, ::-1]), Image.new("L", (28, 28))]
    animated = _file(Image.fromarray(digit), save_all=True, append_images=frames)
    assert getattr(Image.open(io.BytesIO(animated)), "n_frames", 1) == 3
    assert np.array_equal(decode_digit(animated, MAX_PIXELS), digit)


def test_a_cmyk_jpeg_is_read_like_a_grey_one(digit: np.ndarray) -> None:
    """A CMYK JPEG gives the same digit as a greyscale one."""
    large = Image.fromarray(255 - np.kron(digit, np.ones((10, 10), np.uint8)))
    grey, cmyk = (
        decode_digit(_file(large.convert(mode), "JPEG", quality=95), MAX_PIXELS).astype(int)
        for mode in ("L", "CMYK")
    )
    assert np.abs(grey - cmyk).max() <= 16


@pytest.mark.parametrize("grey", [0, 30, 128, 255])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (28, 27), (300, 200), (1, 1_000_000)])
def test_a_blank_image_is_refused(size: tuple[int, int], grey: int) -> None:
    """An empty picture of any size and brightness is refused and reaches no model."""
    with pytest.raises(NothingDrawnError, match="nothing is drawn"):
        decode_digit(_file(Image.new("L", size, grey)), MAX_PIXELS)


@pytest.mark.parametrize("side", [28, 100, 400])
def test_a_blank_photo_is_refused(side: int) -> None:
    """Noise and light from one side do not count as ink."""
    generator = np.random.default_rng(side)
    for noise in (1, 5, 15):
        paper = np.linspace(120, 220, side) + generator.normal(0, noise, (side, side))
        with pytest.raises(NothingDrawnError, match="nothing is drawn"):
            convert_picture(Image.fromarray(paper.clip(0, 255).astype(np.uint8)))


def test_any_picture_at_all_is_read_or_refused() -> None:
    """Each of five hundred random pictures gives a 28x28 image or is refused as blank."""
    generator = np.random.default_rng(0)
    read = 0
    for _ in range(500):
        height, width = np.exp(generator.uniform(0, 5, 2)).astype(int)
        mean, deviation = generator.uniform(0, 200, 2)
        picture = generator.normal(mean, deviation, (height, width))
        picture[: generator.integers(0, height + 1)] += generator.integers(-200, 200)
        rows, columns = generator.integers(0, [[height], [width]], (2, 5))
        picture[rows, columns] = picture[:, columns[0]] = generator.integers(0, 256)
        if generator.random() < 0.5:
            picture = np.median(picture) + (picture - np.median(picture)) * (picture > 200)
        try:
            found = convert_picture(Image.fromarray(picture.clip(0, 255).astype(np.uint8)))
        except NothingDrawnError:
            continue
        assert found.shape == (28, 28)
        assert found.dtype == np.uint8
        assert found.max() == 255 or (height, width) == (28, 28)
        read += 1
    assert 50 < read < 450


def test_transparent_all_over_is_blank() -> None:
    """Colours that are fully transparent are not a drawing."""
    generator = np.random.default_rng(0)
    rgba = generator.integers(0, 256, (50, 50, 4), np.uint8)
    rgba[..., 3] = 0
    with pytest.raises(NothingDrawnError):
        convert_picture(Image.fromarray(rgba))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"just text", "not a PNG or JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG or JPEG"),
        (b"\x80\x04\x95pickle", "not a PNG or JPEG"),
        (b"GIF89a" + bytes(100), "not a PNG or JPEG"),
        (DIGIT.read_bytes()[:60], "damaged"),
        (DIGIT.read_bytes()[:33], "not a PNG or JPEG"),
    ],
)
def test_what_is_no_image_is_refused(content: bytes, named: str) -> None:
    """Text, other formats and truncated files are refused with what came."""
    with pytest.raises(InvalidInputError, match=named):
        decode_digit(content, MAX_PIXELS)


def test_a_huge_image_is_refused_before_it_is_decoded() -> None:
    """An image whose header announces 50,000 x 50,000 pixels is refused."""
    small = bytearray(DIGIT.read_bytes())
    small[16:24] = (50_000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    with pytest.raises(PayloadTooLargeError, match="pixels"):
        decode_digit(bytes(small), MAX_PIXELS)
    with pytest.raises(PayloadTooLargeError, match="1001 x 1000"):
        decode_digit(_file(Image.new("L", (1001, 1000))), MAX_PIXELS)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "junk", [b"", b"MM", b"not a TIFF file", b"II*\x00\xff\xff\xff\xff", bytes(40)]
)
def test_an_unreadable_exif_block_does_not_spoil_the_image(junk: bytes, digit: np.ndarray) -> None:
    """A broken EXIF block in a PNG or JPEG is ignored."""
    png = _file(Image.fromarray(digit), exif=junk)
    assert np.array_equal(decode_digit(png, MAX_PIXELS), digit)
    jpeg = _file(Image.fromarray(digit), "JPEG", quality=95, exif=b"Exif\x00\x00" + junk)
    assert np.abs(decode_digit(jpeg, MAX_PIXELS).astype(int) - digit).mean() < 3


def test_damaged_files_of_every_kind_are_refused_in_words() -> None:
    """Two thousand randomly damaged PNGs and JPEGs are read or refused, without another error."""
    generator = np.random.default_rng(0)
    noisy = Image.fromarray(
        np.kron(np.eye(4, 3), generator.integers(0, 255, (10, 10))).astype("u1")
    )
    exif = b"Exif\x00\x00MM\x00*" + bytes(30)
    for original in (DIGIT.read_bytes(), _file(noisy, "JPEG", exif=exif)):
        for _ in range(1_000):
            damaged = bytearray(original)
            for position in generator.integers(0, len(damaged), generator.integers(1, 6)):
                damaged[position] = generator.integers(0, 256)
            try:
                assert decode_digit(bytes(damaged), MAX_PIXELS).shape == (28, 28)
            except (InvalidInputError, NothingDrawnError, PayloadTooLargeError) as error:
                assert str(error)  # noqa: PT017 - either outcome is right
