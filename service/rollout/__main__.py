"""Roll-out commands: ``python -m service.rollout {status,stage,canary,shadow,promote,rollback}``.

The commands read and write files in the bundles folder; the workers of a running service follow
the files. Exit codes: 0 done (with --wait: live in every worker), 1 refused, 2 wrong use, 3 not
live in time.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.bundle.manifest import BundleError
from service.rollout import changes
from service.rollout.status import describe_status, read_samples, read_status, wait_for
from service.settings import SettingsError, read_settings
from service.versions.state import DesiredState, Limits, RolloutError, RolloutFolder, find_rollouts

DONE, REFUSED, WRONG_USE, LATE = 0, 1, 2, 3
WAIT_S = 120.0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m service.rollout", description="Replace a model's version while it serves."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--bundles",
        type=Path,
        help="folder of the bundles (default: INFERENCE_BUNDLES, as for the service)",
    )
    common.add_argument("--json", action="store_true", help="print JSON")
    change = argparse.ArgumentParser(add_help=False)
    change.add_argument(
        "--wait",
        nargs="?",
        type=float,
        const=WAIT_S,
        metavar="SECONDS",
        help=f"wait until every worker serves it, at most this long (default {WAIT_S:g})",
    )
    contract = argparse.ArgumentParser(add_help=False)
    contract.add_argument(
        "--allow-contract-change",
        action="store_true",
        help="the version may have other inputs, outputs or labels than the stable one",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser(
        "status", parents=[common], help="show the desired and the live state"
    )
    status.add_argument("name", nargs="?", help="a model (default: all models with versions)")
    status.add_argument(
        "--samples", action="store_true", help="also print the worst disagreements of the shadow"
    )
    stage = commands.add_parser("stage", parents=[common], help="add a version without serving it")
    stage.add_argument("name", help="the model")
    stage.add_argument("bundle", type=Path, help="the folder of the bundle")
    _add_candidates(commands, [common, change, contract])
    promote = commands.add_parser(
        "promote", parents=[common, change, contract], help="make a version the stable one"
    )
    promote.add_argument("name", help="the model")
    promote.add_argument("version", nargs="?", help="default: the canary, otherwise the shadow")
    back = commands.add_parser(
        "rollback",
        parents=[common, change],
        help="drop the canary and the shadow or, if there is none, return to the previous version",
    )
    back.add_argument("name", help="the model")
    return parser.parse_args(argv)


def _add_candidates(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    parents: list[argparse.ArgumentParser],
) -> None:
    """Add the commands canary and shadow, with the options of all commands that change a state."""
    limits = argparse.ArgumentParser(add_help=False)
    for name, field in Limits.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        limits.add_argument(
            option, type=float, help=f"default {field.default}; see docs/rollout.md"
        )
    for role, words, share in (
        ("canary", "answer a share of the requests with a version", 0.05),
        (
            "shadow",
            "compare a version's answers with the stable version's; clients never receive them",
            1.0,
        ),
    ):
        command = commands.add_parser(role, parents=[*parents, limits], help=words)
        command.add_argument("name", help="the model")
        command.add_argument("version", help="a staged version")
        command.add_argument(
            "--share",
            type=float,
            default=share,
            help="share of the requests, more than 0 and at most 1",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = _parse(argv)
    try:
        bundles: Path = arguments.bundles or read_settings().bundles
        if arguments.command == "status":
            return _show_status(arguments, bundles)
        folder = RolloutFolder(bundles / arguments.name)
        if arguments.command == "stage":
            version = changes.stage(folder, arguments.bundle)
            _print(arguments, {"model": folder.name, "version": version}, f"staged {version}")
            return DONE
        state = _change(arguments, folder)
    except changes.RefusedError as error:
        sys.stderr.write(f"refused: {error}\n")
        return REFUSED
    except (RolloutError, BundleError, SettingsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return WRONG_USE
    return _finish(arguments, folder, state)


def _change(arguments: argparse.Namespace, folder: RolloutFolder) -> DesiredState:
    folder.read_desired()  # raises if it is missing, before the lock creates folders
    if arguments.command == "promote":
        return changes.promote(
            folder, arguments.version, allow_contract_change=arguments.allow_contract_change
        )
    if arguments.command == "rollback":
        return changes.roll_back(folder)
    limits = {
        name: getattr(arguments, name)
        for name in Limits.model_fields
        if getattr(arguments, name) is not None
    }
    return changes.set_candidate(
        folder,
        arguments.command,
        arguments.version,
        arguments.share,
        limits,
        allow_contract_change=arguments.allow_contract_change,
    )


def _finish(arguments: argparse.Namespace, folder: RolloutFolder, state: DesiredState) -> int:
    """Wait if --wait is given, print the outcome, and return the exit code."""
    fields: dict[str, Any] = {"model": folder.name, "generation": state.generation}
    if arguments.wait is None:
        words = f"generation {state.generation} is requested: {state.reason}"
        _print(arguments, fields | {"outcome": "wanted"}, words)
        return DONE
    outcome, why = wait_for(folder, state.generation, arguments.wait)
    fields |= {"outcome": outcome, "reason": why}
    _print(arguments, fields, f"generation {state.generation} is {outcome}: {why}")
    return {"live": DONE, "refused": REFUSED, "pending": LATE}[outcome]


def _show_status(arguments: argparse.Namespace, bundles: Path) -> int:
    folders = find_rollouts(bundles)
    if arguments.name is not None:
        folders = [RolloutFolder(bundles / arguments.name)]
    elif not folders:
        raise RolloutError(
            f"no model in {bundles.resolve()} has versions; begin with: python -m service.rollout "
            "stage NAME BUNDLE"
        )
    statuses = [read_status(folder) for folder in folders]
    words = [describe_status(status) for status in statuses]
    if arguments.samples:
        for status, folder in zip(statuses, folders, strict=True):
            status["samples"] = read_samples(folder)
            words += [
                f"{folder.name}: difference {sample['difference']:.3g}, sample {sample['number']} "
                f"of {sample['file']}"
                for sample in status["samples"]
            ]
    _print(arguments, statuses, "\n".join(words))
    return DONE


def _print(arguments: argparse.Namespace, content: object, words: str) -> None:
    sys.stdout.write((json.dumps(content, indent=2) if arguments.json else words) + "\n")


if __name__ == "__main__":
    sys.exit(main())
