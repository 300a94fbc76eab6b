"""The running service's processes, found by the port in its command line."""

import psutil


def main_process(url: str) -> psutil.Process:
    """The process of `bentoml serve`."""
    port = url.rsplit(":", 1)[1]
    return next(
        process
        for process in psutil.process_iter(["cmdline"])
        if port in (process.info["cmdline"] or [])  # None if the process has just ended
    )


def worker_processes(url: str) -> list[psutil.Process]:
    """The service's live workers."""
    main = main_process(url).pid
    return [
        process
        for process in psutil.process_iter(["cmdline", "ppid"])
        if process.info["ppid"] == main
        and "_bentoml_impl.worker.service" in (process.info["cmdline"] or [])
    ]
