"""Describe what a network computes, step by step, without running it on data.

``describe(module, inputs)`` takes any module; ``python -m training describe NAME`` is its command.
"""

from training.describe.errors import DescribeError
from training.describe.schema import Description
from training.describe.steps import describe

__all__ = ["DescribeError", "Description", "describe"]
