"""The fastest plain way of files to a device: no model, no names, and nothing kept."""

from pathlib import Path
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Wait for what a device was given to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: str) -> str:
    """What a device is: a GPU's name as its driver has it."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def copied(directory: Path, device: torch.device, *, piece_bytes: int = 64 << 20) -> int:
    """Files read into two pinned buffers, one filled while the other is copied to the device; the bytes copied."""
    pinned = device.type != "cpu"
    buffers = [torch.empty(piece_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
    targets = [torch.empty_like(buffer, device=device) for buffer in buffers]
    done: list[Any] = [None, None]
    total = turn = 0
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while True:
                if done[turn] is not None:
                    done[turn].synchronize()
                if not (size := file.readinto(buffers[turn].numpy())):
                    break
                targets[turn][:size].copy_(buffers[turn][:size], non_blocking=True)
                done[turn] = torch.accelerator.current_stream().record_event() if pinned else None
                total, turn = total + size, 1 - turn
    synchronize(device)
    return total
