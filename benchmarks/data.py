"""The bundle's training step on batches from its data path against the same step on one batch that never changes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from monai.bundle import ConfigParser

from benchmarks.step import BUNDLES
from benchmarks.timing import take_turns
from medcoarse.workflow import PrepareBatchCoarse


def _loop(parser: ConfigParser) -> tuple[Callable[[Any], None], Any]:
    """One coupled step on a batch, and the training loader."""
    model, loss = parser.get_parsed_content("coarse_model"), parser.get_parsed_content("loss")
    optimizer, prepare = parser.get_parsed_content("optimizer"), PrepareBatchCoarse("coarse")
    model.train()

    def step(batch: Any) -> None:
        image, target = prepare(batch, torch.device("cpu"))
        optimizer.zero_grad()
        loss(model(image), target).backward()
        optimizer.step()

    return step, parser.get_parsed_content("train#dataloader")


def run(seconds: float) -> dict[str, Any]:
    """Times of one step of either loop, on synthetic photographs of LES-AV's size."""
    with tempfile.TemporaryDirectory() as folder:
        parser = ConfigParser()
        parser.read_config(BUNDLES / "les_av" / "configs" / "train.json")
        parser.update(
            {
                "bundle_root": str(BUNDLES / "les_av"),
                "output_dir": folder,
                "synthetic": {"num_images": 6, "num_test": 1, "size": [1444, 1620]},
                "device": "$torch.device('cpu')",
                "num_workers": 0,  # a worker would load while the other loop has its turn
            }
        )
        step, loader = _loop(parser)
        batches = _endless(loader)
        constant = next(batches)
        times = take_turns({"data path": lambda: step(next(batches)), "one batch": lambda: step(constant)}, 2 * seconds)
    return {name: timing._asdict() for name, timing in times.items()}


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table of the README."""
    fixed = results["one batch"]["median"]
    return [
        ["training loop", "ms a step (median, range)", "throughput"],
        *(
            [
                name,
                f"{t['median'] * 1e3:.0f} ({t['low'] * 1e3:.0f}-{t['high'] * 1e3:.0f})",
                f"{fixed / t['median']:.2f}",
            ]
            for name, t in results.items()
        ),
    ]
