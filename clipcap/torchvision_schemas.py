"""Lets a torchvision built for CUDA be imported beside a CPU build of torch.

The package index has one torchvision wheel a platform, linked against CUDA. Beside a CPU torch its compiled
half does not load, and importing torchvision (which open_clip and transformers do) then dies registering fake
kernels for operators that nobody defined. Nothing here calls those operators, so defining their schemas is
enough. Where torchvision imports as it is, or is not installed, nothing is touched. Modules that import open_clip or
transformers import this one first.
"""

import importlib
import sys

import torch

_SCHEMAS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept_alive: list[torch.library.Library] = []  # schemas vanish with the Library that defined them


def repair() -> None:
    """Import torchvision; if its operators are missing, define their schemas and import it again.

    Raises:
        RuntimeError: torchvision fails to import for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}{_SCHEMAS}")
        _kept_alive.append(library)
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")


repair()
