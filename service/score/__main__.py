"""``python -m service.score INPUT OUTPUT --bundle B``: see ``service.score.cli``."""

import sys
from collections.abc import Sequence

EXTRA = ("ray", "pyarrow", "fsspec", "tqdm")
NOT_RUN = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, if the extra ``score`` is installed; return the exit code."""
    try:
        from service.score import cli  # noqa: PLC0415 - says what to install
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        sys.stderr.write(
            f"score: {error.name} is not installed; pip install -e '.[score]' -c constraints.txt\n"
        )
        return NOT_RUN
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
