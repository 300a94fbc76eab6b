"""Sign and verify bundles with a key pair: OpenSSF model signing, without a network or a log.

The signature is the file ``model.sig`` in the bundle's folder. Its name and its format (a sigstore
bundle) are those of the library ``model-signing``, whose own command can verify it too. It signs
the SHA-256 of every other file in the folder, including ``manifest.json``.

The signature covers the manifest, and ``Bundle.read`` compares every file that is used with the
manifest. ``verify_signature`` therefore checks that the manifest in use is the signed one, byte for
byte, even if files on the disk change before or after the check.

Functions import the library when they are called: the service needs it only with a signing key.
"""

import base64
import binascii
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from export.bundle.manifest import BundleError, Manifest
from export.bundle.store import MANIFEST_NAME, SIGNATURE_NAME, Bundle

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
INSTALL = "pip install -c constraints.txt -e '.[sign]'"
SIGN = "python -m export sign BUNDLE --key PRIVATE.pem"


class SignatureError(BundleError):
    """A bundle is unsigned, signed by another key, or differs from what was signed."""


class SigningKeyError(BundleError):
    """A file is not a key that can sign or verify."""


class SigningPackageError(BundleError):
    """The library ``model-signing`` is not installed."""


class _PublicKey(BaseModel):
    hint: str  # SHA-256 of the public key in PEM


class _Material(BaseModel):
    publicKey: _PublicKey


class _OneSignature(BaseModel):
    sig: str
    keyid: str = ""


class _Envelope(BaseModel):
    payload: str
    payloadType: str
    signatures: list[_OneSignature]


class _SignatureFile(BaseModel):
    """The fields of ``model.sig`` that are verified; others are dropped."""

    mediaType: str
    verificationMaterial: _Material
    dsseEnvelope: _Envelope


class _Resource(BaseModel):
    name: str
    algorithm: str
    digest: str


class _Predicate(BaseModel):
    resources: list[_Resource]


class _Statement(BaseModel):
    """The in-toto statement that is signed: the digests of the folder's files."""

    predicate: _Predicate

    def manifest_sha256(self) -> str | None:
        """The SHA-256 digest of manifest.json; None if the statement does not have it."""
        for resource in self.predicate.resources:
            if (resource.name, resource.algorithm) == (MANIFEST_NAME, "sha256"):
                return resource.digest
        return None


def open_signed(folder: Path, public_key: Path | None) -> Bundle:
    """Open a bundle; with a public key, only if it is signed by the matching private key.

    Args:
        folder: The bundle.
        public_key: A PEM file; if None, no signature is required.

    Raises:
        BundleError: The bundle cannot be opened, or ``verify_signature`` refuses it.
    """
    bundle = Bundle.open(folder)
    if public_key is not None:
        verify_signature(bundle, public_key)
    return bundle


def sign_bundle(folder: Path, private_key: Path) -> Path:
    """Sign a bundle, replacing an earlier signature.

    Args:
        folder: The bundle; it is opened first, so that a damaged bundle is never signed.
        private_key: An unencrypted PEM file of a key on P-256, P-384 or P-521.

    Returns:
        The signature's path.

    Raises:
        BundleError: The bundle cannot be opened.
        SigningKeyError: The file is not such a key.
        SigningPackageError: ``model-signing`` is not installed.
    """
    bundle = Bundle.open(folder)
    with _library():
        from model_signing import hashing, signing  # noqa: PLC0415 - an optional package
    _read_private_key(private_key)
    hashed = hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)
    signer = signing.Config().use_elliptic_key_signer(private_key=private_key)
    # Written next to the bundle, so that the bundle never contains a partial signature.
    with tempfile.TemporaryDirectory(prefix=".sign-", dir=folder.resolve().parent) as temporary:
        written = Path(temporary) / SIGNATURE_NAME
        signer.set_hashing_config(hashed).sign(bundle.folder.resolve(), written)
        written.replace(folder / SIGNATURE_NAME)
    return folder / SIGNATURE_NAME


def verify_signature(bundle: Bundle, public_key: Path) -> None:
    """Raise unless an opened bundle is signed by the private key that matches this public key.

    Args:
        bundle: The result of ``Bundle.open``.
        public_key: A PEM file of a key on P-256, P-384 or P-521.

    Raises:
        SignatureError: The bundle is unsigned, signed by another key, or differs from what was
            signed.
        SigningKeyError: The file is not such a key.
        SigningPackageError: ``model-signing`` is not installed.
    """
    with _library():
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an optional package
        from model_signing import verifying  # noqa: PLC0415
    key_sha256 = _fingerprint(_read_public_key(public_key))
    signature = _read_signature(bundle.folder)
    signer_sha256 = signature.verificationMaterial.publicKey.hint
    if signer_sha256 != key_sha256:
        raise SignatureError(
            f"{bundle.folder} is signed by another key: SHA-256 {signer_sha256}, expected "
            f"{key_sha256} ({public_key}); use a bundle that is signed by this key"
        )
    # The library reads a copy of the signature parsed here, so that both check the same one.
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / SIGNATURE_NAME
        copy.write_text(signature.model_dump_json())
        try:
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
            verifier.verify(bundle.folder.resolve(), copy)
        except InvalidSignature as error:
            raise SignatureError(
                f"{bundle.folder / SIGNATURE_NAME} was altered or forged: the key {public_key} did "
                "not sign its content; get the bundle from its source again"
            ) from error
        except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
            raise SignatureError(
                f"{bundle.folder} is not what was signed: {error}; get the signed bundle from its "
                f"source again or, if the change is yours, sign it again: {SIGN}"
            ) from error
    _require_signed_manifest(bundle, signature)


def _require_signed_manifest(bundle: Bundle, signature: _SignatureFile) -> None:
    """Raise unless the manifest in use was parsed from the bytes that the signature covers.

    The library hashes the files on the disk only after the bundle was opened.
    """
    content = (bundle.folder / MANIFEST_NAME).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    try:
        statement = _Statement.model_validate_json(_decode(signature.dsseEnvelope.payload))
        is_used = Manifest.model_validate(json.loads(content)) == bundle.manifest
    except ValueError as error:
        raise SignatureError(
            f"the signature of {bundle.folder} is not one of a bundle: {error}"
        ) from error
    signed = statement.manifest_sha256()
    if found != signed or not is_used:
        raise SignatureError(
            f"{bundle.folder / MANIFEST_NAME} is not the signed one: SHA-256 {found}, signed "
            f"{signed}{'' if is_used else ', and it changed while it was read'}; get the signed "
            "bundle from its source again"
        )


def _read_signature(folder: Path) -> _SignatureFile:
    path = folder / SIGNATURE_NAME
    if not path.is_file():
        raise SignatureError(
            f"{folder} is not signed: {SIGNATURE_NAME} is missing, expected a signature by the "
            f"configured key; sign the bundle where it is built: {SIGN}"
        )
    try:
        signature = _SignatureFile.model_validate_json(path.read_bytes())
        payload = _decode(signature.dsseEnvelope.payload)
    except (OSError, ValidationError, binascii.Error) as error:
        raise SignatureError(
            f"{path} is not a key-mode signature of OpenSSF model signing: {error}; sign the "
            f"bundle again: {SIGN}"
        ) from error
    envelope = signature.dsseEnvelope.model_copy(
        update={"payload": base64.b64encode(payload).decode()}
    )
    return signature.model_copy(update={"dsseEnvelope": envelope})


def _decode(payload: str) -> bytes:
    return base64.b64decode(payload, validate=True)


@contextmanager
def _library() -> Iterator[None]:
    """Turn a missing package into an error that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SigningPackageError(
            f"signatures need the package model-signing, and {error.name} is missing: {INSTALL}"
        ) from error


def _read_public_key(path: Path) -> "ec.EllipticCurvePublicKey":
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SigningKeyError(f"{path} is not a public key in PEM: {_first_line(error)}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise SigningKeyError(f"{path} {_expected(key)}")
    return key


def _read_private_key(path: Path) -> "ec.EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except TypeError as error:  # the library raises this if a password is needed
        raise SigningKeyError(
            f"{path} is encrypted; expected a key without a password, which this writes: "
            "openssl pkey -in ENCRYPTED.pem -out PRIVATE.pem"
        ) from error
    except (OSError, ValueError) as error:
        raise SigningKeyError(
            f"{path} is not a private key in PEM: {_first_line(error)}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise SigningKeyError(f"{path} {_expected(key)}")
    return key


def _expected(key: object) -> str:
    return (
        f"contains a {type(key).__name__.lstrip('_')}, expected an elliptic curve key on "
        f"{', '.join(CURVES.values())}; make one with: "
        "openssl ecparam -name prime256v1 -genkey -noout -out PRIVATE.pem"
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _fingerprint(key: "ec.EllipticCurvePublicKey") -> str:
    """The SHA-256 of a public key in PEM; signatures identify their key by it."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()
