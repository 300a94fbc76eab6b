"""``python -m service.score INPUT OUTPUT --bundle B``: see ``service.score.cli``."""

import sys
from collections.abc import Sequence

OURS = ("service", "export")
NOT_RUN = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, if the extra ``score`` is installed; return the exit code."""
    try:
        from service.score import cli  # noqa: PLC0415 - an extra
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] in OURS:
            raise
        sys.stderr.write(
            f"score: {error}; install what scoring needs: pip install -c constraints.txt "
            "-e '.[score]' onnxruntime\n"
        )
        return NOT_RUN
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
