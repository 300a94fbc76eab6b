"""A bundle opens if the key's holder signed it, and otherwise is refused with the reason."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from export.__main__ import main
from export.bundle.signature import (
    SignatureError,
    SigningKeyError,
    SigningPackageError,
    open_signed,
    sign_bundle,
    verify_signature,
)
from export.bundle.store import Bundle
from tests.keys import make_key_pair, public_half
from tests.rehash import rehash
from tests.tiny import SERVED_BUNDLES


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key, with its public key beside it."""
    return make_key_pair(tmp_path, "key")


@pytest.fixture
def signed(served_bundle: Path, key: Path) -> Path:
    """A signed bundle for tests to damage."""
    sign_bundle(served_bundle, key)
    return served_bundle


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _unsigned(bundle: Path) -> None:
    (bundle / "model.sig").unlink()


def _flipped_and_repaired(bundle: Path) -> None:
    _flip(bundle / "model.onnx")
    rehash(bundle, "model.onnx")


def _looser_manifest(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"version"', ' "version"', 1))


def _of_another_bundle(bundle: Path) -> None:
    other = shutil.copytree(SERVED_BUNDLES / "mlp", bundle.parent.parent / "mlp")
    sign_bundle(other, bundle.parent.parent / "key.pem")
    shutil.copy(other / "model.sig", bundle)


def _of_another_key(bundle: Path) -> None:
    sign_bundle(bundle, make_key_pair(bundle.parent.parent, "other"))


def _changed(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path], None]:
    def fault(bundle: Path) -> None:
        content = json.loads((bundle / "model.sig").read_text())
        change(content)
        (bundle / "model.sig").write_text(json.dumps(content))

    return fault


def _named_for_another_key(bundle: Path) -> None:
    """Replace the signature by another key's, which claims to be the expected key's."""
    hint = json.loads((bundle / "model.sig").read_text())["verificationMaterial"]
    _of_another_key(bundle)
    _changed(lambda s: s.update(verificationMaterial=hint))(bundle)


def _says_what_is_there(bundle: Path) -> None:
    """Alter the bundle, and put the new files' digests into the old signature."""
    old = json.loads((bundle / "model.sig").read_text())
    _flipped_and_repaired(bundle)
    _of_another_key(bundle)
    new = json.loads((bundle / "model.sig").read_text())
    old["dsseEnvelope"]["payload"] = new["dsseEnvelope"]["payload"]
    (bundle / "model.sig").write_text(json.dumps(old))


REFUSED = {
    "unsigned": (_unsigned, r"cnn is not signed: model\.sig is missing.*export sign"),
    "one flipped byte, its hash repaired": (
        _flipped_and_repaired,
        r"cnn is not what was signed:.*manifest\.json.*model\.onnx",
    ),
    "one blank in the manifest": (_looser_manifest, r"not what was signed:.*manifest\.json"),
    "signature of another bundle": (_of_another_bundle, r"not what was signed:.*model\.onnx"),
    "signature of another key": (_of_another_key, r"signed by another key: SHA-256 \w{64}, exp"),
    "another key's, under the key's name": (_named_for_another_key, r"altered or forged"),
    "new digests in an old signature": (_says_what_is_there, r"altered or forged"),
    "no JSON": (
        lambda b: (b / "model.sig").write_text("?"),
        r"model\.sig is not a key-mode signature",
    ),
    "no payload": (
        _changed(lambda s: s["dsseEnvelope"].pop("payload")),
        "is not a key-mode signature.*payl",
    ),
    "payload is no base64": (
        _changed(lambda s: s["dsseEnvelope"].update(payload="?")),
        "is not a key-mode signature",
    ),
    "no signatures": (
        _changed(lambda s: s["dsseEnvelope"].update(signatures=[])),
        "not what was signed",
    ),
    "no key named": (
        _changed(lambda s: s["verificationMaterial"].pop("publicKey")),
        "is not a key-mode signature.*publicKey",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_the_key_did_not_sign_is_refused_with_the_reason(
    fault: str, signed: Path, key: Path
) -> None:
    """The message says what came, what was expected and what to do; without a key it opens."""
    plant, reason = REFUSED[fault]
    plant(signed)
    with pytest.raises(SignatureError, match=f"(?s){reason}"):
        open_signed(signed, public_half(key))
    assert open_signed(signed, None).manifest.name == "cnn"


def test_a_signed_bundle_opens_wherever_it_is_moved(signed: Path, key: Path) -> None:
    """It opens with and without the key, also renamed; signing again replaces the signature."""
    moved = signed.rename(signed.parent / "moved")
    sign_bundle(moved, key)
    assert open_signed(moved, public_half(key)).manifest == Bundle.open(moved).manifest
    assert [path.name for path in moved.parent.iterdir()] == ["moved"]


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_keys_of_larger_curves_sign_too(
    curve: ec.EllipticCurve, served_bundle: Path, tmp_path: Path
) -> None:
    """P-384 and P-521 work as well as P-256."""
    key = make_key_pair(tmp_path, "key", curve)
    sign_bundle(served_bundle, key)
    open_signed(served_bundle, public_half(key))


def test_a_manifest_that_was_read_before_the_signed_one_came_is_refused(
    signed: Path, key: Path
) -> None:
    """The manifest in use is verified, not the one that is on the disk by then."""
    path = signed / "manifest.json"
    honest = path.read_bytes()
    content = json.loads(honest) | {"version": "0"}
    path.write_text(json.dumps(content))
    opened = Bundle.open(signed)
    path.write_bytes(honest)
    with pytest.raises(SignatureError, match="changed while it was read"):
        verify_signature(opened, public_half(key))


def test_only_the_fields_that_are_verified_are_read(signed: Path, key: Path) -> None:
    """A second envelope, under a name that a reader might prefer, changes nothing."""
    statement = base64.b64encode(b"{}").decode()
    _changed(lambda s: s.update(dsse_envelope={"payload": statement}))(signed)
    open_signed(signed, public_half(key))
    _flipped_and_repaired(signed)
    with pytest.raises(SignatureError, match="not what was signed"):
        open_signed(signed, public_half(key))


def test_no_damaged_bundle_is_signed(served_bundle: Path, key: Path) -> None:
    """Signing opens the bundle first, so a damaged one is refused."""
    _flip(served_bundle / "model.onnx")
    assert main(["sign", str(served_bundle), "--key", str(key)]) == 2
    assert not (served_bundle / "model.sig").exists()


def test_the_command_signs_and_verifies(
    served_bundle: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 0 for a signed bundle, 2 for another and 64 for a wrong key."""
    verify = ["sign", "--verify", str(served_bundle), "--key", str(public_half(key))]
    assert main(verify) == 2
    assert "cnn is not signed" in capsys.readouterr().err
    assert main(["sign", str(served_bundle), "--key", str(key)]) == 0
    assert main(verify) == 0
    assert f"signed by {public_half(key)} (cnn " in capsys.readouterr().out
    assert main(["sign", str(served_bundle), "--key", str(public_half(key))]) == 64
    assert "is not a private key in PEM" in capsys.readouterr().err


def _pem(private: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def test_unusable_private_keys_are_named(served_bundle: Path, tmp_path: Path) -> None:
    """A missing file, another kind of key or curve and a password are each explained."""
    keys = {
        b"": "is not a private key in PEM",
        _pem(
            ed25519.Ed25519PrivateKey.generate(), b""
        ): "contains a Ed25519PrivateKey, expected .*P-2",
        _pem(ec.generate_private_key(ec.SECP256K1()), b""): "expected an elliptic curve key on P-2",
        _pem(ec.generate_private_key(ec.SECP256R1()), b"secret"): "is encrypted.*openssl pkey",
    }
    path = tmp_path / "key.pem"
    with pytest.raises(SigningKeyError, match="is not a private key in PEM"):
        sign_bundle(served_bundle, path)
    for content, reason in keys.items():
        path.write_bytes(content)
        with pytest.raises(SigningKeyError, match=reason):
            sign_bundle(served_bundle, path)


def test_unusable_public_keys_are_named(signed: Path, key: Path, tmp_path: Path) -> None:
    """Nothing is loaded with a missing file, a private key or another kind of key."""
    other = tmp_path / "other.pem"
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    other.write_bytes(
        public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    for path, reason in {
        tmp_path / "nowhere.pem": "nowhere.pem is not a public key in PEM",
        key: "key.pem is not a public key in PEM",
        other: "contains a Ed25519PublicKey, expected an elliptic curve key",
    }.items():
        with pytest.raises(SigningKeyError, match=reason):
            open_signed(signed, path)


def test_without_the_library_the_install_line_is_printed(
    signed: Path,
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The status is 69 and nothing counts as verified; bundles open without a key as before."""
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert main(["sign", str(signed), "--key", str(key)]) == 69
    assert "pip install -c constraints.txt -e '.[sign]'" in capsys.readouterr().err
    with pytest.raises(SigningPackageError, match="model-signing"):
        open_signed(signed, public_half(key))
    open_signed(signed, None)


def _library(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_librarys_command_verifies_and_signs_bundles_too(signed: Path, key: Path) -> None:
    """The library's command verifies our signatures, and we verify its own."""
    signature = signed / "model.sig"
    verify: list[str | Path] = [
        "verify",
        "key",
        signed,
        "--signature",
        signature,
        "--public_key",
        public_half(key),
    ]
    assert _library(*verify).returncode == 0
    _flipped_and_repaired(signed)
    assert _library(*verify).returncode != 0
    ran = _library("sign", "key", signed, "--signature", signature, "--private_key", key)
    assert ran.returncode == 0, ran.stderr
    open_signed(signed, public_half(key))
