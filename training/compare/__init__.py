"""Digit models beside each other: several seeds of each, one report, one JSON.

``compare`` measures and returns every figure as a ``Comparison``; ``write_report`` draws them.
"""

from training.compare.measure import compare
from training.compare.report import write_report
from training.compare.schema import ComparePlan, Comparison

__all__ = ["ComparePlan", "Comparison", "compare", "write_report"]
