"""Key pairs for tests of signatures."""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_key_pair(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> Path:
    """Write ``name.pem``, a private key on P-256 or another curve, and its public half.

    Returns:
        The private key's path; ``public_half`` gives the other.
    """
    private = ec.generate_private_key(curve or ec.SECP256R1())
    path = folder / f"{name}.pem"
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public_half(path).write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


def public_half(private: Path) -> Path:
    """Where the public key of a pair is."""
    return private.with_suffix(".pub.pem")
