"""Compare digit models, with several seeds of each, in a report and a JSON file.

``compare`` measures everything and returns a ``Comparison``; ``write_report`` writes the files.
"""

from training.compare.measure import compare
from training.compare.report import write_report
from training.compare.schema import ComparePlan, Comparison

__all__ = ["ComparePlan", "Comparison", "compare", "write_report"]
