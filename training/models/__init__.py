"""The networks, one family per file; ``registry`` looks them up by name."""

from training.models.registry import (
    ARCHITECTURES,
    RENAMED,
    VARIANTS,
    architecture_config,
    build_model,
    explained,
    model_names,
    resolved,
)

__all__ = [
    "ARCHITECTURES",
    "RENAMED",
    "VARIANTS",
    "architecture_config",
    "build_model",
    "explained",
    "model_names",
    "resolved",
]
