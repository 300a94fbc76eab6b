"""Checks that a documented command exists, with its options and files; it runs nothing."""

import argparse
import contextlib
import importlib
import inspect
import io
import re
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import yaml

from tests.containers.files import compose_text
from tests.docs.pages import ROOT

Words = Sequence[str]
# Programs of the shell and the system, whose arguments do not refer to the project.
PLAIN = {"git", "cd", "mkdir", "rm", "apt-get", "openssl"}
FOREIGN_MODULES = {"pip", "venv", "model_signing"}
LOCUST_OPTIONS = {"--host"}  # of locust itself
MODULE_OPTION = 2  # python -m


class _ParsedError(Exception):
    """The command line was accepted; ``arguments`` is the parser's result."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Keep the arguments."""
        super().__init__()
        self.arguments = arguments


def check(words: Words) -> None:
    """Check one simple command.

    Raises:
        AssertionError: It has a target, module, option, file, profile or URL that does not exist,
            or there is no check for this program.
    """
    program = words[0].removeprefix(".venv/bin/").removeprefix(".venv-service/bin/")
    if program in PLAIN:
        return
    assert program in CHECKS, f"no check for the program {program}: add one to CHECKS"
    CHECKS[program](words)


def load_main(module: str) -> Callable[[list[str]], Any]:
    """The function ``main`` of the module that ``python -m module`` runs."""
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    main: Callable[[list[str]], Any] = found.main
    return main


def check_options(words: Words) -> None:
    """Check the module, the command and the option names; values may be placeholders."""
    if words[0] == "make":
        _check_make(words)
        return
    module, *rest = words[words.index("-m") + 1 :]
    if module in FOREIGN_MODULES:
        return
    if "argv" not in inspect.signature(load_main(module)).parameters:
        assert not rest, f"python -m {module} takes no arguments"
        return
    path = [rest[0]] if rest and re.fullmatch("[a-z]+", rest[0]) else []
    text = help_text(module, tuple(path))
    for word in rest:
        if word.startswith("--"):
            option = word.partition("=")[0]
            assert re.search(rf"{option}\b", text), f"{module} {path} has no option {option}"


@cache
def help_text(module: str, command: tuple[str, ...]) -> str:
    """The output of ``python -m module command --help``."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        load_main(module)([*command, "--help"])
    assert printed.getvalue(), f"{module} {' '.join(command)} --help printed nothing"
    return printed.getvalue()


def _check_python(words: Words) -> None:
    if words[1] == "-c":
        compile(words[2], "<docs>", "exec")
    elif words[1] == "-m":
        _check_module(words[MODULE_OPTION:])
    else:
        assert words[1] == "-", f"python {words[1]}: expected -m, -c or - with a here-document"


def _check_module(words: Words) -> None:
    module, *rest = words
    if module in FOREIGN_MODULES:
        return
    if module == "pytest":
        files = [word for word in rest if word.startswith("tests/")]
        assert all((ROOT / file).exists() for file in files), files
        return
    original = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *given: Any, **options: Any) -> None:
        raise _ParsedError(original(parser, *given, **options))

    said = io.StringIO()
    argparse.ArgumentParser.parse_args = parse  # type: ignore[assignment,method-assign]
    try:
        with contextlib.redirect_stderr(said):
            load_main(module)(rest)
    except _ParsedError as parsed:
        if module == "training":
            _check_network(parsed.arguments)
        return
    except SystemExit as refused:
        raise AssertionError(f"python -m {' '.join(words)}: {said.getvalue()}") from refused
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
    raise AssertionError(f"python -m {module} has no argument parser")


def _check_network(arguments: argparse.Namespace) -> None:
    from training.models import model_names  # noqa: PLC0415 - loads torch, for few commands

    name = vars(arguments).get("model", "mlp")
    assert name in model_names(), f"training has no network {name}"


def _check_make(words: Words) -> None:
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = [word for word in words[1:] if "=" not in word]
    assert targets
    assert set(targets) <= set(rules), f"no such target: {set(targets) - set(rules)}"


def _check_torchrun(words: Words) -> None:
    _check_module(words[words.index("-m") + 1 :])


def _check_bentoml(words: Words) -> None:
    assert words[1] in {"serve", "build"}
    for word in words[2:]:
        if ":" in word:
            module, _, name = word.partition(":")
            source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
            assert f"class {name}" in source


def _check_locust(words: Words) -> None:
    file = ROOT / words[words.index("-f") + 1]
    declared = {*re.findall(r'"(--[a-z-]+)"', file.read_text()), *LOCUST_OPTIONS}
    assert {word for word in words if word.startswith("--")} <= declared, words


def _check_tool(words: Words) -> None:
    tool = words[0].rpartition("/")[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = [
        package
        for extra in project["project"]["optional-dependencies"].values()
        for package in extra
    ]
    package = {"lint-imports": "import-linter"}.get(tool, tool)
    assert any(re.split(r"[>\[=]", extra)[0] == package for extra in extras), tool


def _check_curl(words: Words) -> None:
    document = yaml.safe_load((ROOT / "service" / "openapi" / "openapi.yaml").read_text())
    patterns = [re.sub(r"\{\w+\}", "[^/]+", path) for path in document["paths"]]
    urls = [re.sub(r"^(https?://)?localhost:3000", "", w) for w in words if "localhost" in w]
    assert urls, f"a curl without a URL of the service: {words}"
    for url in urls:
        path = url.partition("?")[0]
        assert any(re.fullmatch(pattern, path) for pattern in patterns), f"no endpoint {path}"
    for word in words:
        file = re.search(r"@(tests/.+)", word)
        assert file is None or (ROOT / file.group(1)).is_file(), word


def _check_docker(words: Words) -> None:
    if words[1] == "build":
        assert (ROOT / words[words.index("-f") + 1]).is_file()
        return
    if words[1] == "push":
        return
    assert words[1] == "compose"
    services = yaml.safe_load(compose_text())["services"]
    profiles = {profile for service in services.values() for profile in service.get("profiles", [])}
    rest = list(words[2:])
    while "--profile" in rest:
        at = rest.index("--profile")
        assert rest[at + 1] in profiles, rest[at + 1]
        del rest[at : at + 2]
    command, *named = [word for word in rest if not word.startswith("-")]
    if command == "cp":
        named = [word.partition(":")[0] for word in named if ":" in word]
    assert set(named) <= set(services), named


def _check_cluster_tool(words: Words) -> None:
    """Check the files and folders in kubectl's or helm's arguments."""
    for option, path in pairwise(words):
        if option in {"-k", "-f", "--values"}:
            assert (ROOT / path).exists(), path


def _check_prometheus(words: Words) -> None:
    file = words[1].removeprefix("--config.file=")
    assert (ROOT / file).is_file()


CHECKS: dict[str, Callable[[Words], None]] = {
    "python": _check_python,
    "python3": _check_python,
    "make": _check_make,
    "torchrun": _check_torchrun,
    "bentoml": _check_bentoml,
    "locust": _check_locust,
    "curl": _check_curl,
    "docker": _check_docker,
    "prometheus": _check_prometheus,
    **dict.fromkeys(("kubectl", "helm"), _check_cluster_tool),
    **dict.fromkeys(("ruff", "mypy", "lint-imports", "pre-commit"), _check_tool),
}
