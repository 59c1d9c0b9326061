"""Peak memory of training and inference of the drawings bundle on volumes of several sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, MetaTensor, list_data_collate
from monai.transforms import Compose

from benchmarks.timing import peak_bytes
from medcoarse.confusion import UNLABELED, Annotations

CONFIG = Path(__file__).parents[1] / "bundles" / "drawings" / "configs" / "train.json"
SIDES = (128, 256)


def _parser() -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parser["spacing"] = None
    return parser


def _volume(side: int) -> dict[str, Any]:
    """A volume of random voxels with a stroke of each class."""
    torch.manual_seed(0)
    strokes = torch.full((1, side, side, side), UNLABELED, dtype=torch.uint8)
    for k in range(3):
        strokes[0, 4 * k : 4 * k + 2, :, side // 2] = k
    return {"image": MetaTensor(torch.randn(1, side, side, side)), "positive": MetaTensor(strokes)}


def training(tiny: bool, side: int) -> Callable[[], Any]:
    """A function that takes patches out of a cached volume and makes one step of the coupled model on them."""
    parser = _parser()
    names = ("augmentation", "coarse_model", "loss", "optimizer", "batch_size")
    augmentation, model, loss, optimizer, number = (parser.get_parsed_content(name) for name in names)
    items = [_volume(32 if tiny else side)] * number
    dataset = CacheDataset(items, Compose(augmentation), num_workers=1, progress=False)

    def step() -> None:
        batch = list_data_collate([dataset[index] for index in range(number)])
        optimizer.zero_grad()
        image = batch["image"]
        loss(model(image), Annotations(positive=batch["positive"], image=image)).backward()
        optimizer.step()

    return step


def inference(tiny: bool, side: int) -> Callable[[], Any]:
    """A function that segments a volume, window by window, up to its label map."""
    parser = _parser()
    network, inferer = (parser.get_parsed_content(name) for name in ("network", "validate#inferer"))
    image = _volume(32 if tiny else side)["image"].as_tensor()[None]
    return torch.inference_mode()(lambda: inferer(image, network.eval()).argmax(1).to(torch.uint8))


def run(seconds: float) -> dict[str, Any]:
    """Memory that a step and a segmentation add to the volume; nothing is timed."""
    table = []
    for side in SIDES:
        found = {way.__name__: peak_bytes(way, side) for way in (training, inference)}
        table.append({"side": side, "volume_bytes": 4 * side**3, **found})
    return {"volumes": table}


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table of the README."""
    lines = [["volume", "its own size, MB", "a training step adds, MB", "inference adds, MB"]]
    for row in results["volumes"]:
        sizes = [f"{row[key] / 2**20:.0f}" for key in ("volume_bytes", "training", "inference")]
        lines.append([f"{row['side']}³", *sizes])
    return lines
