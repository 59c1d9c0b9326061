from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import set_track_meta

from medcoarse.files import plain
from medcoarse.synthetic import write_fundus_dataset
from medcoarse.synthetic.digits import write_digit_dataset

ROOT = Path(__file__).parents[2]

TWICE = ("test_adapted.py", "test_expansion.py", "test_pseudo_labels.py", "test_self_training.py")
"""Methods to compare with: over the digits always, over photographs, which takes minutes, when asked for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("MEDCOARSE_LONG_TESTS"):
        return
    skip = pytest.mark.skip(reason="the same over other data takes minutes: set MEDCOARSE_LONG_TESTS=1")
    for item in items:
        again = item.path.name in ("test_volumes.py", "test_cityscapes.py") and "bit_identical" in item.name
        if again or (item.path.name in TWICE and "les_av" in item.name):
            item.add_marker(skip)


SMALL = {
    "max_epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 2,
    "val_interval": 1,
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "network_def#num_res_units": 1,
    "annotator_backbone#channels": [4, 8],
    "annotator_backbone#strides": [2],
}
"""Overrides that make a run take seconds."""


@dataclass(frozen=True)
class Bundle:
    """A bundle, and a small data set to run it on.

    Args:
        name: its folder.
        data: the data set.
        small: overrides that make a run take seconds.
        structure: name of class 1.
        size: (height, width) of every image.
        section: of the datalist, that training validates on.
    """

    name: str
    data: Path
    small: dict[str, Any]
    structure: str
    size: tuple[int, int]
    section: str

    @property
    def root(self) -> Path:
        return ROOT / "bundles" / self.name

    @property
    def small_network(self) -> dict[str, Any]:
        """The overrides that inference knows."""
        return {
            name: value
            for name, value in self.small.items()
            if name.startswith(("patch_size", "network", "image_size"))
        }

    def items(self, section: str) -> list[dict[str, str]]:
        return json.loads((self.data / "datalist.json").read_text())[section]

    def places(self, output: Path) -> dict[str, str]:
        return {"dataset_dir": str(self.data), "output_dir": str(output), "ckpt_dir": str(output / "models")}

    def workflow(self, *configs: str, kind: str = "train", **overrides: Any) -> ConfigWorkflow:
        """The bundle as MONAI builds it from its configuration files."""
        return ConfigWorkflow(
            config_file=[str(self.root / "configs" / name) for name in configs],
            meta_file=str(self.root / "configs" / "metadata.json"),
            logging_file=str(self.root / "configs" / "logging.conf"),
            workflow_type=kind,
            bundle_root=str(self.root),
            **overrides,
        )

    def parsed(self, output: Path, *keys: str, **overrides: Any) -> Any:
        """What training is made of: the content of one key, or a list of several."""
        built = self.workflow("train.json", **(self.small | self.places(output) | overrides))
        built.initialize()
        found = [built.parser.get_parsed_content(key) for key in keys]
        return found[0] if len(found) == 1 else found

    def run(self, *configs: str, kind: str = "train", **overrides: Any) -> ConfigWorkflow:
        built = self.workflow(*configs, kind=kind, **overrides)
        built.initialize()
        built.run()
        built.finalize()
        return built

    def train(self, output: Path, **overrides: Any) -> ConfigWorkflow:
        return self.run("train.json", **(self.small | self.places(output) | overrides))

    def evaluate(self, output: Path) -> dict[str, Any]:
        """Scores of the test images, by the weights that training left."""
        self.run("train.json", "evaluate.json", **self.small, **self.places(output))
        return json.loads((output / "evaluation.json").read_text())

    def metrics(self, output: Path) -> dict[str, Any]:
        return json.loads((output / "metrics.json").read_text())

    def command(self, run_id: str, *config_files: str, **overrides: Any) -> list[str]:
        """The command that a user types."""
        files = [f"bundles/{self.name}/{name}" for name in config_files]
        arguments = [f"--{name}={value}" for name, value in overrides.items()]
        configs = files[0] if len(files) == 1 else str(files)
        return [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", configs, *arguments]

    def scores_in_one_process(self, output: Path) -> dict[str, float | None]:
        """All scores of the validation images, by the weights that training left."""
        evaluator, network = self.parsed(output, "validate#evaluator", "network")
        network.load_state_dict(torch.load(output / "models" / "model.pt", weights_only=True))
        evaluator.run()
        return {name: plain(value) for name, value in evaluator.state.metrics.items()}

    def recomputed_iou(self, output: Path) -> float:
        """Independent of any engine: load the saved weights, run the network, count pixels."""
        built = self.workflow("train.json", **self.small, **self.places(output))
        built.initialize()
        network, dataset = built.network_def, built.parser.get_parsed_content("validate#dataset")
        inferer = built.parser.get_parsed_content("validate#inferer")
        network.load_state_dict(torch.load(output / "models" / "model.pt", weights_only=True))
        values = []
        for item in dataset:
            with torch.no_grad():
                prediction = inferer(torch.as_tensor(item["image"])[None], network.eval())[0].argmax(0).numpy()
            label = item["label"].numpy()[0]
            inside = label != 255
            both = (prediction == 1) & (label == 1) & inside
            either = ((prediction == 1) | (label == 1)) & inside
            values.append(both.sum() / either.sum())
        return float(np.mean(values))


def _les_av(folder: Path) -> Bundle:
    """Six small photographs in LES-AV's layout, two of them for testing."""
    data = write_fundus_dataset(folder, num_images=6, size=(96, 109), num_test=2)
    return Bundle("les_av", data, SMALL | {"repeats": 1, "patch_size": [32, 32]}, "vessel", (96, 109), "test")


def _mnist(folder: Path) -> Bundle:
    """Four digits to train on, two to validate on, two for testing."""
    data = write_digit_dataset(folder, num_training=5, num_validation=2, num_test=2)
    return Bundle("mnist", data, SMALL | {"num_training": 4}, "digit", (28, 28), "validation")


@pytest.fixture(scope="session", params=["les_av", "mnist"])
def bundle(request, tmp_path_factory) -> Bundle:
    return {"les_av": _les_av, "mnist": _mnist}[request.param](tmp_path_factory.mktemp("data") / request.param)


@pytest.fixture(scope="session")
def trained(bundle, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    bundle.train(output)
    return output


@pytest.fixture(autouse=True)
def _keep_metadata():
    """A bundle that does without them says so for the whole process, until it is finalized."""
    yield
    set_track_meta(True)


@pytest.fixture(autouse=True)
def _keep_logging_as_it_is():
    """ConfigWorkflow applies the bundle's logging.conf, which silences other loggers."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False
