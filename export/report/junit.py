"""Write the gate's verdicts as JUnit XML, which CI systems read."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from export.parity.judge import Judgement
from export.parity.schema import ParityFigures

NOT_JUDGED = "not killed, as allowed if weights are not judged"
NONE_EXACT = "no value was compared that must be bit-equal"
# Characters that XML does not allow, even if they are escaped.
_ILLEGAL = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(figures: ParityFigures, judgement: Judgement) -> str:
    """Make a test case for each variant, fault and other check; each failure is in exactly one."""
    suite = ElementTree.Element("testsuite", name="parity")

    def add(group: str, name: str, failures: Sequence[str], skipped: str | None = None) -> None:
        case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{group}")
        case.set("name", f"{figures.name} on {figures.device}: {name}")
        if failures:
            failure = ElementTree.SubElement(case, "failure", message=failures[0])
            failure.text = "\n".join(failures)
        elif skipped is not None:
            ElementTree.SubElement(case, "skipped", message=skipped)

    for variant, failures in judgement.by_variant.items():
        add("variants", variant, failures)
    for variant, why in figures.not_checked.items():
        add("variants", variant, [], why)
    general = judgement.general
    for fault in judgement.mutants:
        own = [f for f in general if f.startswith("mutation test:") and fault.name in f]
        general = [f for f in general if f not in own]
        unseen = None if fault.caught_by else NOT_JUDGED
        add("mutation test", fault.name, own, fault.not_applicable or unseen)
    coverage = [f for f in general if f.startswith("coverage:")]
    add("gate", "coverage", coverage)
    evidence = [f for f in general if f.startswith("inconclusive:")]
    add("gate", "evidence", evidence)
    compared = any(layer.exact for layer in figures.layers)
    exact = [f for f in general if f not in coverage + evidence]
    add("gate", "exact values", exact, None if compared else NONE_EXACT)
    counts = {"tests": "testcase", "failures": "*/failure", "skipped": "*/skipped"}
    for name, found in counts.items():
        suite.set(name, str(len(suite.findall(found))))
    ElementTree.indent(suite)
    text = _ILLEGAL.sub("?", ElementTree.tostring(suite, "unicode"))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'
