"""One picture of Cityscapes' size with 19 classes: a training step and inference of the bundle, time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from benchmarks.timing import peak_bytes
from medcoarse.confusion import Annotations
from medcoarse.inferers import MultiScaleInferer
from medcoarse.networks import CoupledModel

CONFIG = Path(__file__).parents[1] / "bundles" / "cityscapes" / "configs" / "train.json"
SIZE, NUM_CLASSES = (2048, 1024), 19
TASKS = ("supervised step", "coupled step", "inference", "inference, 3 scales and mirrored")


def task(tiny: bool, name: str) -> Callable[[], Any]:
    """A function that makes one step on a whole picture, or segments it in windows."""
    torch.manual_seed(0)
    size = (64, 32) if tiny else SIZE
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parser["num_classes"] = NUM_CLASSES
    parser["annotator_def#num_positive"] = parser["annotator_def#num_negative"] = 1
    network, annotator, loss = (parser.get_parsed_content(key) for key in ("network_def", "annotator_def", "loss"))
    image = torch.rand(1, 3, *size)
    if name.startswith("inference"):
        views = {"scales": [0.5, 1.0, 2.0], "flip": True} if "scales" in name else {}
        inferer = MultiScaleInferer([64, 64] if tiny else [512, 512], **views)

        def infer() -> torch.Tensor:
            with torch.inference_mode():
                return inferer(image, network.eval()).argmax(1)

        return infer
    drawing = torch.randint(0, NUM_CLASSES, (1, 1, *size), dtype=torch.uint8)
    drawing[..., ::3] = 255
    model = CoupledModel(network, annotator)
    model.annotating = name.startswith("coupled")
    target = Annotations(drawing, (drawing + 1) % NUM_CLASSES if model.annotating else None, image=image)

    def step() -> None:
        model.zero_grad()
        loss(model(image), target).backward()

    return step


def run(seconds: float) -> dict[str, Any]:
    """Wall and processor seconds of one call, the second one, and the memory that it adds at its peak."""
    results = {}
    for name in TASKS:
        function = task(False, name)
        function() if seconds >= 5 else task(True, name)()
        wall, processor = time.perf_counter(), time.process_time()
        function()
        times = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        results[name] = {**times, "peak_bytes": peak_bytes(task, name)}
    return results


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table of the README."""
    lines = [["one picture of 2048 x 1024, 19 classes", "seconds", "processor seconds", "peak memory, GB"]]
    return lines + [
        [name, f"{found['wall']:.1f}", f"{found['processor']:.1f}", f"{found['peak_bytes'] / 1e9:.2f}"]
        for name, found in results.items()
    ]
