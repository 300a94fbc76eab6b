"""Which changes of the gate's code does no test notice? Mutants of each module, a seeded sample.

    make mutation
    python -m tests.mutation --sample 40 export/parity/judge.py

cosmic-ray changes one operator, number or condition at a time in a copy of the repository, and the
module's own fast tests run against it. A mutant that they pass has survived: a test is missing, or
the change makes no difference. Alternatives within type annotations (``int | None``) are left out:
they are no behaviour.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec

ROOT = Path(__file__).parent.parent
PARITY, PROVENANCE = "tests/export/parity", "tests/export/provenance"
# Of each module the tests that ask it directly, without training or building anything.
TESTS: dict[str, tuple[str, ...]] = {
    "export/bundle/metrics.py": (f"{PARITY}/test_formulas.py", f"{PARITY}/test_metrics.py"),
    "export/bundle/tolerances.py": (
        f"{PARITY}/test_bounds.py",
        f"{PARITY}/test_verdicts.py",
        f"{PARITY}/test_metrics.py",
    ),
    "export/parity/adequacy.py": (f"{PARITY}/test_adequacy.py",),
    "export/parity/candidates.py": (f"{PARITY}/test_asked.py", f"{PARITY}/test_candidates.py"),
    "export/parity/intermediates.py": (f"{PARITY}/test_intermediates.py",),
    "export/parity/interpreter.py": (f"{PARITY}/test_interpreter.py",),
    "export/parity/judge.py": (f"{PARITY}/test_bounds.py", f"{PARITY}/test_verdicts.py"),
    "export/parity/limits.py": (f"{PARITY}/test_operators.py",),
    "export/parity/measure.py": (f"{PARITY}/test_asked.py", f"{PARITY}/test_candidates.py"),
    "export/parity/mutants.py": (f"{PARITY}/test_plants.py",),
    "export/parity/noise.py": (f"{PARITY}/test_noise.py",),
    "export/parity/reference.py": (f"{PARITY}/test_asked.py", f"{PARITY}/test_reference.py"),
    "export/parity/schema.py": (f"{PARITY}/test_verdicts.py",),
    "export/parity/structure.py": (f"{PARITY}/test_structure.py",),
    "export/provenance/reduced.py": (f"{PROVENANCE}/test_steps.py",),
}
ANNOTATIONS = "ReplaceBinaryOperator_BitOr"
LANES = 2
PATIENCE, LEAST_PATIENCE_S = 5, 60


@dataclass(frozen=True)
class Outcome:
    """A mutant and whether a test noticed it."""

    mutation: MutationSpec
    killed: bool
    lines: str


def sampled(module: str, count: int, seed: int, folder: Path) -> tuple[list[MutationSpec], int]:
    """Some mutants of a module, and how many there are in all."""
    with use_db(str(folder / "session.sqlite"), WorkDB.Mode.create) as session:
        init([ROOT / module], session, {})
        every = [mutation for item in session.work_items for mutation in item.mutations]
    every = [mutation for mutation in every if ANNOTATIONS not in mutation.operator_name]
    every.sort(key=lambda mutation: (mutation.operator_name, mutation.occurrence))
    chosen = random.Random(seed).sample(every, min(count, len(every)))  # noqa: S311 - no secret
    return sorted(chosen, key=lambda mutation: mutation.start_pos), len(every)


def copied(folder: Path) -> Path:
    """A copy of the repository's files as they are now."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in names.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def passes(tree: Path, tests: Sequence[str], timeout_s: float, *, cache: bool) -> bool:
    """Whether tests pass in a copy of the repository; those that hang do not."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if not cache:  # two files of one second and size would look alike
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    try:
        ran = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0


def outcome(mutation: MutationSpec, trees: Queue[Path], module: str, timeout_s: float) -> Outcome:
    """Plant a mutant in a copy that is free and run the module's tests."""
    code = (ROOT / module).read_text()
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    mutated = mutate_code(code, operator, mutation.occurrence)
    tree = trees.get()
    try:
        (tree / module).write_text(mutated)
        killed = not passes(tree, TESTS[module], timeout_s, cache=False)
        shutil.copy2(ROOT / module, tree / module)
    finally:
        trees.put(tree)
    line = mutation.start_pos[0] - 1
    before, after = code.splitlines()[line].strip(), mutated.splitlines()[line].strip()
    return Outcome(mutation, killed, f"{module}:{line + 1}\n  - {before}\n  + {after}")


def mutants_of(module: str, count: int, seed: int) -> tuple[list[Outcome], int]:
    """Run a sample of a module's mutants, a few at once.

    Raises:
        SystemExit: Its tests fail without any mutant.
    """
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(LANES) as lanes:
        chosen, every = sampled(module, count, seed, Path(name))
        trees: Queue[Path] = Queue()
        for lane in range(LANES):
            (Path(name) / str(lane)).mkdir()
            trees.put(copied(Path(name) / str(lane)))
        started = time.monotonic()
        ran = lanes.map(
            lambda tree: passes(tree, TESTS[module], 3_600, cache=True), list(trees.queue)
        )
        if not all(ran):
            raise SystemExit(f"{', '.join(TESTS[module])} fail without a mutant: mend them first")
        timeout_s = max(LEAST_PATIENCE_S, PATIENCE * (time.monotonic() - started))
        run = [lanes.submit(outcome, m, trees, module, timeout_s) for m in chosen]
        return [future.result() for future in run], every


def main(argv: Sequence[str] | None = None) -> int:
    """Print each survivor and a table of scores."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("modules", nargs="*", help=f"default: all of {', '.join(TESTS)}")
    parser.add_argument("--sample", type=int, default=20, help="of each; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    table = ["| module | mutants | run | killed |", "| --- | --- | --- | --- |"]
    every = list[Outcome]()
    for module in arguments.modules or TESTS:
        found, count = mutants_of(module, arguments.sample, arguments.seed)
        every += found
        for survivor in found:
            if not survivor.killed:
                print(f"survived: {survivor.lines}", flush=True)  # noqa: T201
        killed = sum(mutant.killed for mutant in found)
        table.append(f"| `{module}` | {count} | {len(found)} | {killed} |")
        print(table[-1], flush=True)  # noqa: T201
    killed = sum(mutant.killed for mutant in every)
    table.append(f"| all | | {len(every)} | {killed} ({killed / len(every):.0%}) |")
    print("\n".join(table))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
