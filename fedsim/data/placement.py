"""Where a worker keeps the data: as near to its device as they fit."""

import os
from dataclasses import replace
from typing import Literal

import torch

from fedsim.data.federated import FederatedData

SHARE = 0.5
"""Of the free memory of a device, or of the machine for all its workers, that data may take."""


def move_to_device(data: FederatedData, device: torch.device) -> FederatedData:
    """Return the same data on the device, or in pinned memory, or where they are; on a CPU they stay where they are."""
    if device.type != "cuda":
        return data
    free_device, _ = torch.cuda.mem_get_info(device)
    free_host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    n_bytes = data.inputs.nbytes + data.targets.nbytes
    place = nearest_place(n_bytes, free_device, free_host // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if place == "device":
        return replace(data, inputs=data.inputs.to(device), targets=data.targets.to(device))
    if place == "pinned":
        return replace(data, inputs=data.inputs.pin_memory(), targets=data.targets.pin_memory())
    return data


def nearest_place(n_bytes: int, free_device: int, free_host: int) -> Literal["device", "pinned", "mapped"]:
    """Return where `n_bytes` fit: the device, else memory that it reads directly; else they stay mapped from disk."""
    if n_bytes <= SHARE * free_device:
        return "device"
    return "pinned" if n_bytes <= SHARE * free_host else "mapped"
