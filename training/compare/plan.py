"""What a comparison measures besides the checkpoints' accuracy."""

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class ComparePlan(BaseModel):
    """Everything that decides a comparison, besides checkpoints, data and machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int | None = Field(
        default=None,
        ge=1,
        description="test images that are distorted, evenly taken; None: all. Accuracy, "
        "calibration and McNemar's test always use all",
    )
    base: str | None = Field(
        default=None, description="the group that the others are compared with; None: the first"
    )
    sizes: tuple[PositiveInt, ...] = Field(
        default=(), description="training-set sizes, images; none: no network is trained"
    )
    size_epochs: int = Field(
        default=5, ge=1, le=1_000, description="epochs of each such run, of the largest size each"
    )
    timing_rounds: int = Field(default=15, ge=1, le=1_000, description="interleaved rounds")
    differing_shown: int = Field(
        default=24, ge=0, le=200, description="images, for each group beside the base"
    )
    picture_index: int = Field(
        default=0, ge=0, description="the test image whose feature maps are drawn"
    )
