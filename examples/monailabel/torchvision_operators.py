"""Lets `torchvision` be imported beside a CPU build of torch that it was not built for.

Where only torchvision's CUDA build is to be had, its compiled part cannot be loaded, and the import fails because the
operators of that part are missing. MONAI Label uses `make_grid` and `save_image` only, which are plain Python. So the
operators are declared here, without any implementation: what calls one of them stops with an error.
"""

from importlib.metadata import version

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")

if "+cpu" in torch.__version__ and "+cpu" not in version("torchvision"):
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
