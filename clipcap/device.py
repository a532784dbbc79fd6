"""Where the models run and in which precision."""

import os
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def memory_mb(device: torch.device) -> int:
    """The memory of an accelerator, or of this machine or container, in MiB."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory / 2**20)
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # another system, or "max"
            found = min(found, int(Path(limit).read_text()))
    return found // 2**20


def free_bytes(device: torch.device) -> int:
    """The memory of an accelerator, or of this machine or container, that can be had now, in bytes."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    found = memory_mb(device) * 2**20
    with suppress(OSError, KeyError):  # another system
        found = min(found, _numbers("/proc/meminfo")["MemAvailable:"] * 1024)
    with suppress(OSError, ValueError, KeyError):  # no container, or one without a limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        found = min(found, limit - used + _numbers(str(group / "memory.stat"))["inactive_file"])
    return max(0, found)


def _numbers(path: str) -> dict[str, int]:
    """The numbers of a file with one name and its number a line."""
    return {name: int(number) for name, number, *_ in map(str.split, Path(path).read_text().splitlines())}


def pick_device(name: str = "auto") -> torch.device:
    """The device `name` stands for; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: no such device, or torch cannot use it on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); 'auto' and 'cpu' always can") from error
    return device


def check_processes(processes: int, device: torch.device, option: str) -> None:
    """Whether each of the processes has a GPU, or a core, of its own.

    Args:
        option: the name under which a person has set their number.

    Raises:
        ValueError: there are too few.
    """
    what, there = {
        "cuda": ("GPUs", torch.cuda.device_count()),
        "cpu": ("cores", os.cpu_count() or 1),
    }.get(device.type, ("GPUs", 1))
    if not 0 < processes <= there:
        raise ValueError(
            f"{option} is {processes}, and there are {there} {what}, one for each at most; set it to 1 to {there}"
        )


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype `name` stands for; `auto` is bfloat16 on CUDA cards that have it, else float32.

    On a CPU without instructions for it bfloat16 is emulated, up to seventy times slower than float32.

    Raises:
        ValueError: an unknown name.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and multiplies_bfloat16(device) else torch.float32
    if name not in _DTYPES:
        raise ValueError(f"dtype {name!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[Any]:
    """What training computes in: bfloat16 where it is asked for or, with `auto`, where the device multiplies it, which
    is two to four times as fast; else float32."""
    if _trains_in_bfloat16(device, precision):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def training_attention(device: torch.device, precision: str = "auto") -> AbstractContextManager[Any]:
    """How training computes attention and its gradient in the precision of `autocast`: on a CPU in bfloat16 by plain
    products, with which a whole step is 1.1 to 1.3 times as fast as with torch's fused kernel (`./run bench --only
    training`), whose gradient is slow there. It holds for all threads of the process until the block ends."""
    if device.type == "cpu" and _trains_in_bfloat16(device, precision):
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def _trains_in_bfloat16(device: torch.device, precision: str) -> bool:
    return precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16(device))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is faster than float32 here: on CUDA cards since Ampere, and on CPUs that have
    instructions for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def multiplies_int8() -> bool:
    """Whether products of 8-bit integers are faster than those of float32 on this CPU: with AVX-512's VNNI two of them
    are. With AVX2's they are not."""
    return bool(torch.cpu._is_vnni_supported())
