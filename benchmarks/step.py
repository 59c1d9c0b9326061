"""A whole training step of the coupled model against the supervised step of the same segmenter, and inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from torch import nn

from benchmarks.timing import peak_bytes, take_turns
from medcoarse.confusion import Annotations
from medcoarse.losses import CoupledLoss
from medcoarse.networks import AnnotatorNet, CoupledModel

BUNDLES = Path(__file__).parents[1] / "bundles"
PATCHES = {
    "2D, LES-AV bundle": (4, 3, 256, 256),
    "3D, U-Net of the same widths": (2, 1, 64, 64, 64),
    "2D, tumours bundle, five annotators": (16, 4, 64, 64),
}
WAYS = ("supervised", "coupled", "coupled, annotators at full resolution", "warm-up")
ANNOTATORS = 5


def components(name: str, reduction: int | None) -> tuple[nn.Module, AnnotatorNet, CoupledLoss]:
    """Segmenter, annotators and loss of the bundle, in 2D or 3D."""
    parser = ConfigParser()
    several = name.endswith("annotators")
    parser.read_config(BUNDLES / ("brats" if several else "les_av") / "configs" / "train.json")
    if several:  # explained together, as the bundle does where all drew all
        parser["num_annotators"] = parser["annotators_per_image"] = ANNOTATORS
    if reduction is not None:
        parser["annotator_def#reduction"] = reduction
    if name.startswith("3D"):
        parser["network_def#spatial_dims"] = parser["annotator_backbone#spatial_dims"] = 3
        parser["annotator_def#spatial_dims"] = 3
        parser["network_def#in_channels"] = parser["annotator_backbone#in_channels"] = 1
    segmenter, annotator, loss = (parser.get_parsed_content(key) for key in ("network_def", "annotator_def", "loss"))
    return segmenter, annotator, loss


def training(tiny: bool, name: str, way: str) -> Callable[[], Any]:
    """A function that makes one step on one fixed batch."""
    torch.manual_seed(0)
    shape = PATCHES[name]
    if tiny:
        shape = (1, shape[1], *[32] * (len(shape) - 2))
    segmenter, annotator, coupled = components(name, 1 if "full resolution" in way else None)
    image = torch.randn(shape)
    classes = coupled.num_classes
    drawn = ANNOTATORS if annotator.num_positive > 1 else 1
    label = torch.randint(0, classes, (shape[0], drawn, *shape[2:]), dtype=torch.uint8)
    model: nn.Module = segmenter if way == "supervised" else CoupledModel(segmenter, annotator)
    if way == "warm-up":
        model.annotating = False
    optimizer = torch.optim.AdamW(model.parameters())
    target = Annotations(positive=label, negative=1 - label if annotator.num_negative else None, image=image)

    def step() -> None:
        optimizer.zero_grad()
        output = model(image)
        loss = F.cross_entropy(output, label[:, 0].long()) if way == "supervised" else coupled(output, target)
        loss.backward()
        optimizer.step()

    return step


def inference(tiny: bool, name: str, way: str) -> Callable[[], Any]:
    """A function that segments one batch."""
    torch.manual_seed(0)
    segmenter, annotator, _ = components(name, None)
    model = (segmenter if way == "segmenter" else CoupledModel(segmenter, annotator)).eval()
    image = torch.randn(PATCHES[name])
    return torch.inference_mode()(lambda: model(image))


def run(seconds: float) -> dict[str, Any]:
    """Times and memory of a step, and times of inference."""
    table, predictions = [], []
    for name, shape in PATCHES.items():
        own = [way for way in WAYS if not (name.endswith("annotators") and "full" in way)]  # is its default
        for way, timing in take_turns({way: training(False, name, way) for way in own}, 4 * seconds).items():
            row = {"case": name, "shape": shape, "way": way, **timing._asdict()}
            table.append({**row, "peak_bytes": peak_bytes(training, name, way)})
        ways = ("segmenter", "coupled model")
        for way, timing in take_turns({way: inference(False, name, way) for way in ways}, seconds).items():
            predictions.append({"case": name, "shape": shape, "way": way, **timing._asdict()})
    return {"training": table, "inference": predictions}


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table of the README."""
    lines = [["patches", "step", "ms (median, range)", "times the supervised", "peak memory, MB"]]
    for row in results["training"]:
        plain = next(r for r in results["training"] if r["case"] == row["case"] and r["way"] == "supervised")
        memory = f"{row['peak_bytes'] / 2**20:.0f} ({row['peak_bytes'] / plain['peak_bytes']:.2f})"
        lines.append([_shape(row), row["way"], _milliseconds(row), f"{row['median'] / plain['median']:.2f}", memory])
    for row in results["inference"]:
        plain = next(r for r in results["inference"] if r["case"] == row["case"] and r["way"] == "segmenter")
        ratio = f"{row['median'] / plain['median']:.2f}"
        lines.append([_shape(row), f"inference, {row['way']}", _milliseconds(row), ratio, ""])
    return lines


def _shape(row: dict[str, Any]) -> str:
    shape = " x ".join(map(str, row["shape"]))
    return f"{shape}, {ANNOTATORS} annotators" if row["case"].endswith("annotators") else shape


def _milliseconds(row: dict[str, Any]) -> str:
    return f"{row['median'] * 1e3:.1f} ({row['low'] * 1e3:.1f}-{row['high'] * 1e3:.1f})"
