"""Uploads become 28x28 ink on ground, or are refused in words."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidInputError, PayloadTooLargeError
from service.images import read_image, to_model_input

DIGIT = Path(__file__).with_name("digit.png")
MAX_PIXELS = 1_000_000


def _file(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


@pytest.fixture
def digit() -> np.ndarray:
    return np.asarray(Image.open(DIGIT))


def test_an_mnist_image_passes_bit_for_bit(digit: np.ndarray) -> None:
    """A 28x28 grey PNG with light ink comes out as it was."""
    pixels = read_image(DIGIT.read_bytes(), MAX_PIXELS)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, digit)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "LA"])
def test_every_mode_gives_the_same_drawing(mode: str, digit: np.ndarray) -> None:
    """Black and white drawn in any colour mode is read alike."""
    sharp = np.where(digit > 127, 255, 0).astype(np.uint8)
    image = Image.fromarray(sharp).convert(mode)
    assert np.array_equal(to_model_input(image), sharp)


def test_ink_on_light_paper_is_inverted(digit: np.ndarray) -> None:
    """Dark on light becomes light on dark, exactly."""
    assert np.array_equal(read_image(_file(Image.fromarray(255 - digit)), MAX_PIXELS), digit)


def test_transparent_paper_is_white(digit: np.ndarray) -> None:
    """Black ink on a transparent ground is read as ink on white paper."""
    rgba = np.zeros((28, 28, 4), np.uint8)
    rgba[..., 3] = digit
    assert np.abs(to_model_input(Image.fromarray(rgba)).astype(int) - digit).max() <= 1


def test_sixteen_bits_become_eight(digit: np.ndarray) -> None:
    """A 16-bit grey PNG keeps its upper eight bits."""
    deep = Image.fromarray(digit.astype(np.uint16) * 257)
    assert np.array_equal(read_image(_file(deep), MAX_PIXELS), digit)


def test_exif_orientation_is_applied(digit: np.ndarray) -> None:
    """A photo that says that it lies on its side is turned upright."""
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    lying = Image.fromarray(np.kron(digit[::-1, ::-1], np.ones((10, 10), np.uint8)))
    upright = read_image(_file(lying, "JPEG", quality=95, exif=exif), MAX_PIXELS)
    assert np.abs(upright.astype(int) - digit).mean() < 3


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 1_000_000), (1_000_000, 1), (28, 560), (560, 28), (900, 1000), (14, 14)]
)
def test_any_size_keeps_its_proportions(size: tuple[int, int]) -> None:
    """Ink that fills an image of any proportions fills the same share of 28x28, in its middle."""
    width, height = size
    sheet = np.zeros((height, width), np.uint8)
    # A cross of full width and height with an empty rim: its extent is the image's own.
    sheet[height // 2, :] = sheet[:, width // 2] = 255
    sheet[0] = sheet[-1] = sheet[:, 0] = sheet[:, -1] = 0
    pixels = to_model_input(Image.fromarray(sheet))
    assert pixels.shape == (28, 28)
    rows, columns = np.nonzero(pixels)
    longer = max(size)
    for found, side in ((rows, height), (columns, width)):
        expected = max(1, round(28 * side / longer))
        assert found.size == 0 or found.max() - found.min() < expected
        assert found.size == 0 or abs(found.max() + found.min() - 27) <= 2


def test_a_long_image_is_padded_not_squeezed() -> None:
    """A vertical bar in a tall image stays a thin bar."""
    tall = np.zeros((560, 140), np.uint8)
    tall[40:520, 60:80] = 255
    pixels = to_model_input(Image.fromarray(tall))
    columns = np.flatnonzero(pixels.max(axis=0) > 64)
    assert len(columns) <= 2
    assert 12 <= columns.mean() <= 15


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
    """Text, other formats and cut-off files are refused, saying what came."""
    with pytest.raises(InvalidInputError, match=named):
        read_image(content, MAX_PIXELS)


def test_a_huge_image_is_refused_before_it_is_decoded() -> None:
    """A header that announces 50,000 x 50,000 pixels is enough to refuse it."""
    small = bytearray(DIGIT.read_bytes())
    small[16:24] = (50_000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    with pytest.raises(PayloadTooLargeError, match="pixels"):
        read_image(bytes(small), MAX_PIXELS)
    with pytest.raises(PayloadTooLargeError, match="1001 x 1000"):
        read_image(_file(Image.new("L", (1001, 1000))), MAX_PIXELS)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "junk", [b"", b"MM", b"not a TIFF file", b"II*\x00\xff\xff\xff\xff", bytes(40)]
)
def test_an_unreadable_exif_block_does_not_spoil_the_image(junk: bytes, digit: np.ndarray) -> None:
    """A broken EXIF block in a PNG or JPEG is ignored: the picture itself is read."""
    png = _file(Image.fromarray(digit), exif=junk)
    assert np.array_equal(read_image(png, MAX_PIXELS), digit)
    jpeg = _file(Image.fromarray(digit), "JPEG", quality=95, exif=b"Exif\x00\x00" + junk)
    assert np.abs(read_image(jpeg, MAX_PIXELS).astype(int) - digit).mean() < 3


def test_damaged_files_of_every_kind_are_refused_in_words() -> None:
    """Two thousand random damages to a PNG and a JPEG are read or refused, never anything else."""
    generator = np.random.default_rng(0)
    noisy = Image.fromarray(generator.integers(0, 255, (40, 30), dtype=np.uint8))
    exif = b"Exif\x00\x00MM\x00*" + bytes(30)
    for original in (DIGIT.read_bytes(), _file(noisy, "JPEG", exif=exif)):
        for _ in range(1_000):
            damaged = bytearray(original)
            for position in generator.integers(0, len(damaged), generator.integers(1, 6)):
                damaged[position] = generator.integers(0, 256)
            try:
                assert read_image(bytes(damaged), MAX_PIXELS).shape == (28, 28)
            except (InvalidInputError, PayloadTooLargeError) as error:
                assert str(error)  # noqa: PT017 - either outcome is right
