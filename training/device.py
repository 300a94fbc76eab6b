"""Where a run computes: chosen in one place, named in one way."""

import torch


def chosen_device(asked: str) -> torch.device:
    """The device that was asked for.

    Args:
        asked: "cpu", "cuda", or "auto": CUDA where there is one.

    Raises:
        ValueError: CUDA was asked for and is not there; nothing falls back to the CPU.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise ValueError("--device cuda, but PyTorch sees no CUDA device; use cpu or auto")
    return torch.device("cuda" if there and asked != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """The device as records and tables name it: the GPU's model, or how many threads."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"
