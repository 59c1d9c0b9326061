"""What the bundles cache is not copied at every step, so nothing may change it."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser

from tests.bundles.conftest import ROOT

FEW = {"num_training": 2, "num_validation": 1, "num_test": 1}
SMALL = {
    "drawings": {
        **FEW,
        "shape": [48, 48, 12],
        "spacing": [1.9, 1.9, 4.8],
    },
    "les_av": {"num_images": 3, "num_test": 1, "size": [300, 330]},
    "ms_lesions": {
        **FEW,
        "shape": [48, 48, 12],
        "spacing": [1.6, 1.6, 4.4],
    },
}
"""Bundles whose first random transform cuts pieces out of large images, and small images for them. (A bundle that flips
first writes into the cached images what was applied to them; there the copies are small.)"""


def items_of(dataset):
    """Copies of everything cached: tensors, and how often something was applied to them."""
    return [
        {
            name: (torch.as_tensor(value).clone(), len(getattr(value, "applied_operations", [])))
            for name, value in item.items()
            if isinstance(value, torch.Tensor)
        }
        for item in dataset._cache
    ]


@pytest.mark.parametrize("name", SMALL)
def test_random_transforms_leave_the_cache_as_it_is(name, tmp_path):
    config = ConfigParser(ConfigParser.load_config_file(ROOT / "bundles" / name / "configs" / "train.json"))
    config.update({"bundle_root": str(ROOT / "bundles" / name), "output_dir": str(tmp_path), "synthetic": SMALL[name]})
    config.get_parsed_content("imports")
    dataset = config.get_parsed_content("train#dataset")
    assert not dataset.copy_cache
    before = items_of(dataset)
    assert before[0]["image"][0].numel() > 1
    for _ in range(8):
        for number in range(len(dataset)):
            dataset[number]
    after = items_of(dataset)
    for was, is_now in zip(before, after, strict=True):
        assert was.keys() == is_now.keys()
        for key, (values, operations) in was.items():
            assert torch.equal(values, is_now[key][0]), key
            assert operations == is_now[key][1], f"{key}: the record of what was applied grows with every epoch"
