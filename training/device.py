"""Choose the device of a run, and name it for records and tables."""

import torch


def chosen_device(asked: str) -> torch.device:
    """Return the requested device.

    Args:
        asked: "cpu", "cuda", or "auto", which means CUDA if it is available, else the CPU.

    Raises:
        ValueError: CUDA was requested and is not available; there is no fallback to the CPU.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise ValueError("--device cuda, but PyTorch sees no CUDA device; use cpu or auto")
    return torch.device("cuda" if there and asked != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """Name a device for records and tables: the GPU's model, or the CPU's number of threads."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"
