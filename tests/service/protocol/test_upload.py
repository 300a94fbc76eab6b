"""The image file is found in a form or is the body; anything else is refused."""

import pytest

from service.protocol.errors import InvalidInputError, UnsupportedMediaError
from service.protocol.upload import uploaded_file

KIND = "multipart/form-data; boundary=x"
# A file may contain anything, including the beginnings of boundaries.
CONTENT = bytes(range(256)) + b"\r\n--y\r\n--\r\n-" * 3
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="7.png"\r\n\r\n%b\r\n'
FORM = PART % CONTENT + b"--x--\r\n"
FIELD = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n7\r\n'


@pytest.mark.parametrize(
    "kind", ["image/png", "IMAGE/JPEG; q=1", "application/octet-stream", " image/png "]
)
def test_a_body_may_be_the_file(kind: str) -> None:
    """The content type decides whether the body is the file."""
    assert uploaded_file(CONTENT, kind) == CONTENT


@pytest.mark.parametrize(
    "kind",
    [KIND, 'multipart/form-data; boundary="x"', "Multipart/Form-Data; charset=q; Boundary=x"],
)
@pytest.mark.parametrize(
    "form",
    [
        FORM,
        FORM.replace(b"7.png", b""),
        FORM.replace(b"7.png", b"\xe9\xff.png"),
        FORM.replace(b"\r\n\r\n", b"\r\nContent-Type: image/png\r\n\r\n", 1),
        FORM.replace(b"Content-Disposition", b"content-disposition"),
        FORM[:-2],
        FORM + b"epilogue",
    ],
)
def test_a_form_may_hold_the_file(form: bytes, kind: str) -> None:
    """File name, content type and bytes after the last boundary do not matter."""
    assert uploaded_file(form, kind) == CONTENT


def test_an_empty_file_is_a_file() -> None:
    """An empty file is accepted here, because decoding refuses it with a better message."""
    assert uploaded_file(PART % b"" + b"--x--\r\n", KIND) == b""


@pytest.mark.parametrize("kind", ["", "text/plain", "image/gif", "multipart/mixed; boundary=x"])
def test_other_content_types_are_refused(kind: str) -> None:
    """The message lists the accepted types."""
    with pytest.raises(UnsupportedMediaError, match="multipart/form-data"):
        uploaded_file(FORM, kind)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (b"", "cannot be read"),
        (b"{}", "cannot be read"),
        (FORM[:-8], "it ends before its last boundary"),
        (PART % CONTENT, "it ends before its last boundary"),
        (FORM[:40], "it ends before its last boundary"),
        (FORM.replace(b"\r\n", b"\n"), "cannot be read"),
        (PART % CONTENT + FORM, "several files in the field image"),
        (FIELD % b"image" + FORM, "several files in the field image"),
        (FIELD % b"model" + FORM, "another field, 'model'"),
        (FIELD % b"image" + b"--x--\r\n", r"no file in a field named image \(fields: 'image'\)"),
        (FIELD % b"b\xff" + b"--x--\r\n", r"fields: 'b\\ufffd'"),
        (b"--x--\r\n", r"fields: none"),
        (FIELD % b"a" * 9 + FORM, "more than 8 parts"),
        (FORM.replace(b'name="image"; ', b""), "no file in a field named image|cannot be read"),
        (FORM.replace(b'"image"', b'"%b"' % (b"a" * 50_000)), "cannot be read"),
    ],
)
def test_another_form_is_refused_in_words(form: bytes, words: str) -> None:
    """The message names what was wrong."""
    with pytest.raises(InvalidInputError, match=words):
        uploaded_file(form, KIND)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", f"{KIND}{'x' * 3000}"]
)
def test_a_form_needs_its_boundary(kind: str) -> None:
    """A form without its boundary is refused."""
    with pytest.raises(InvalidInputError, match=r"cannot be read: .*(?i:boundary)"):
        uploaded_file(FORM, kind)
