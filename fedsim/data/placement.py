"""Where a worker keeps the data: on its device, where they fit."""

from dataclasses import replace

import torch

from fedsim.data.federated import FederatedData

SHARE = 0.5
"""Of the free memory of a device, that data may take."""


def move_to_device(data: FederatedData, device: torch.device) -> FederatedData:
    """Return the same data on the device where they fit, and else where they are: batches go by way of pinned memory.

    So what is mapped from a file is in memory once for all workers of a machine.
    """
    n_bytes = data.inputs.nbytes + data.targets.nbytes
    if device.type != "cuda" or n_bytes > SHARE * torch.cuda.mem_get_info(device)[0]:
        return data
    return replace(data, inputs=data.inputs.to(device), targets=data.targets.to(device))
