"""Distances between surfaces against a slow reference: every pair of voxels on the two surfaces."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data.meta_tensor import MetaTensor
from scipy import ndimage

from medcoarse.surfaces import SurfaceReport, surface_distances
from tests.reference.slow_surfaces import slow_surface_distances


@pytest.mark.parametrize(("shape", "spacing"), [((14, 12), (0.7, 0.7)), ((10, 9, 6), (0.8, 0.8, 3.0))])
def test_distances_are_those_of_the_definition(shape, spacing):
    rng = np.random.default_rng(0)
    for _ in range(3):
        pred, label = (ndimage.gaussian_filter(rng.normal(size=shape), 1.5) > 0.02 for _ in range(2))
        mean, most = slow_surface_distances(pred, label, spacing)
        found = surface_distances(torch.tensor(pred * 2), torch.tensor(label * 2), 2, spacing)
        assert found["surface_mm"] == pytest.approx(mean, rel=1e-4)
        assert found["surface95_mm"] == pytest.approx(most, rel=1e-4)


def test_nothing_found_is_the_worst_and_nothing_there_is_no_case():
    label = torch.zeros(30, 40)
    label[3:6, 3:6] = 1
    assert surface_distances(0 * label, label, 1, (1.0, 1.0)) == {"surface_mm": 50.0, "surface95_mm": 50.0}
    assert all(math.isnan(value) for value in surface_distances(label, 0 * label, 1, (1.0, 1.0)).values())
    assert surface_distances(label, label, 1, (1.0, 1.0)) == {"surface_mm": 0.0, "surface95_mm": 0.0}


def test_unknown_voxels_belong_to_neither():
    label = torch.zeros(20, 20)
    label[5:10, 5:10] = 1
    pred = label.clone()
    pred[15:18, 15:18] = 1
    assert surface_distances(pred, label, 1, (1.0, 1.0))["surface95_mm"] > 5
    label[14:, 14:] = 255
    assert surface_distances(pred, label, 1, (1.0, 1.0))["surface95_mm"] == 0


def test_a_report_measures_in_mm_along_every_axis(tmp_path):
    """The same box, two voxels further along one axis: between the faces it is two voxels of that axis in mm."""
    spacing = (0.5, 1.0, 4.0)
    label = torch.zeros(1, 12, 12, 12)
    label[0, 4:7, 4:7, 4:7] = 1
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    images = [MetaTensor(label, affine=affine, meta={"filename_or_obj": f"case{axis}.nii.gz"}) for axis in range(3)]
    report, engine = SurfaceReport(["background", "box"], tmp_path / "scores.json"), Engine(lambda *_: None)
    report.attach(engine)
    engine.state.batch = [{"shown": image} for image in images]
    engine.state.output = [{"pred": label.roll(2, axis + 1), "label": label} for axis in range(3)]
    report._measure(engine)
    report._write(engine)
    rows = json.loads((tmp_path / "scores.json").read_text())["surfaces"]["images"]
    for row, image, pred in zip(rows, images, engine.state.output, strict=True):
        mean, most = slow_surface_distances(pred["pred"][0].numpy() > 0, label[0].numpy() > 0, spacing)
        assert row["name"] == image.meta["filename_or_obj"]
        assert row["surface_mm_box"] == pytest.approx(mean, rel=1e-4)
        assert row["surface95_mm_box"] == pytest.approx(most, rel=1e-4)
    assert len({row["surface_mm_box"] for row in rows}) == 3
