"""The device that a model computes on, as costs are recorded beside it."""

from __future__ import annotations

import functools

import torch

from nsa_eval.env import cpu_name, memory_gib


@functools.cache
def device_name(device: torch.device) -> str:
    """What a device calls itself; a processor's model, with the threads that torch computes with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"{cpu_name() or 'CPU'}, {threads} thread{'s' if threads > 1 else ''}"


@functools.cache
def device_bytes(device: torch.device) -> int | None:
    """Memory of the device in all, the machine's for a processor; None where it can't be asked."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    gib = memory_gib() if device.type == "cpu" else None
    return None if gib is None else int(gib * 2**30)
