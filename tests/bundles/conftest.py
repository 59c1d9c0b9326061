from __future__ import annotations

import logging
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from medcoarse.synthetic import write_fundus_dataset

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "les_av"

SMALL = {
    "max_epochs": 2,
    "warmup_epochs": 1,
    "repeats": 1,
    "batch_size": 2,
    "val_interval": 1,
    "patch_size": [32, 32],
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "network_def#num_res_units": 1,
    "annotator_backbone#channels": [4, 8],
    "annotator_backbone#strides": [2],
}
"""Overrides that make a run take seconds."""


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Six small photographs in LES-AV's layout, two of them for testing."""
    return write_fundus_dataset(tmp_path_factory.mktemp("data") / "fundus", num_images=6, size=(96, 109), num_test=2)


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


def workflow(*configs: str, kind: str = "train", **overrides) -> ConfigWorkflow:
    """The bundle as MONAI builds it from its configuration files."""
    return ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / name) for name in configs],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=str(BUNDLE / "configs" / "logging.conf"),
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        **overrides,
    )


def run(*configs: str, kind: str = "train", **overrides) -> ConfigWorkflow:
    built = workflow(*configs, kind=kind, **overrides)
    built.initialize()
    built.run()
    built.finalize()
    return built


def train(photographs: Path, output: Path, **overrides) -> ConfigWorkflow:
    places = {"dataset_dir": str(photographs), "output_dir": str(output), "ckpt_dir": str(output / "models")}
    return run("train.json", **(SMALL | places | overrides))
