"""Run functions in a separate process: a crash, a hang or a lack of memory becomes an exception.

ONNX Runtime and PyTorch are native code, which can crash the process on an unusual network. The
main process must survive that, to report on the other variants.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

# Large networks on a busy machine may need minutes; waiting for hours would not help.
OPENING_S = 300.0
CONVERSION_S = 1_800.0
GRACE_S = 5.0
OOM_SCORE = Path("/proc/self/oom_score_adj")
# A new interpreter: a fork would copy the main process's threads' locks and its CUDA context.
CONTEXT = multiprocessing.get_context("spawn")


class DiedError(RuntimeError):
    """The process ended or was killed before it returned a result; the message says how."""


def in_one_line(error: Exception) -> str:
    """An error's message in one line: the first and the last line if there are several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ... ".join([*lines[:1], *lines[1:][-1:]]) or type(error).__name__


class Worker:
    """A process that runs one function at a time; after its death, the next call starts a new one.

    The process imports only what the functions need. Functions, arguments and results are pickled;
    an exception that a function raises is raised in the calling process.
    """

    def __init__(self) -> None:
        """Create the worker; the process is not started yet."""
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection[Any, Any] | None = None

    def __enter__(self) -> Self:
        """Start the process, so that the first call does not wait for it."""
        self._started()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._end()

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        """Run a function in the process and return its result.

        Args:
            function: A function of a module that the process can import.
            *arguments: The function's arguments.
            timeout_s: The process is killed after this many seconds.

        Raises:
            DiedError: The process ended, or did not answer in time.
            Exception: Whatever the function raised.
        """
        connection = self._started()
        try:
            connection.send((function, arguments))
            if not connection.poll(timeout_s):
                self._end()
                raise DiedError(f"no answer within {timeout_s:,.0f} s")
            result, error = connection.recv()
        except (EOFError, ConnectionError) as error:
            how = self._cause_of_death()
            self._end()
            raise DiedError(how) from error
        if error is not None:
            raise error
        return result

    def _started(self) -> "Connection[Any, Any]":
        if self._connection is None:
            self._connection, theirs = CONTEXT.Pipe()
            self._process = CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()  # so that the pipe closes when the process ends
        return self._connection

    def _cause_of_death(self) -> str:
        if self._process is None:
            return "the process was not started"
        self._process.join(GRACE_S)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"the process ended with status {code}"
        name = signal.Signals(-code).name
        return name + (" (probably out of memory)" if name == "SIGKILL" else "")

    def _end(self) -> None:
        if self._process is None or self._connection is None:
            return
        self._connection.close()
        self._process.kill()
        self._process.join()
        self._process = self._connection = None


def _serve(connection: "Connection[Any, Any]") -> None:
    """Answer calls until the other end of the pipe is closed."""
    with contextlib.suppress(OSError):  # out of memory: kill this process first
        OOM_SCORE.write_text("1000")
    # PyTorch's threads sleep while they wait for each other, instead of spinning. Where other
    # processes occupy the cores, a batch in two threads takes a hundredth of the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ctrl-C reaches the whole process group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, Exception | None] = (function(*arguments), None)
        except Exception as error:  # noqa: BLE001 - raised again in the caller
            answer = (None, _portable(error))
        connection.send(answer)


def _portable(error: Exception) -> Exception:
    """The error itself if it can be pickled and unpickled, else a RuntimeError with its message."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - written on this line
    except Exception:  # noqa: BLE001 - third-party classes raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
