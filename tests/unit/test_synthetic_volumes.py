"""Drawn brains with MS lesions or a tumour, drawn lung nodules: voxels, and the data sets on disk."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from medcoarse.datalist import load_datalist, verify_prepared
from medcoarse.synthetic.brain import FLUID, OUTSIDE, brain_tissue, ms_lesions, ms_scan, tumour_scan
from medcoarse.synthetic.lung import nodule_crop, read_nodule
from medcoarse.synthetic.pelvis import draw_strokes, pelvis_scan
from medcoarse.synthetic.volumes import write_brats_dataset, write_lidc_dataset, write_ms_dataset, write_pelvis_dataset
from medcoarse.transforms.expand import fill_beyond_loops, losing_ratios, safe_ratio, spread_background

FEW = {"num_training": 2, "num_validation": 1, "num_test": 1, "shape": (24, 24, 10)}
MS_RULES = {"label_keys": ("label", "positive"), "label_values": (0, 1, 255), "mask_keys": ()}


@pytest.fixture(scope="module")
def ms():
    return [ms_scan(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def tumours():
    return [tumour_scan(seed) for seed in range(6)]


def load(path):
    return np.asanyarray(nibabel.load(path).dataobj)


# ---- Voxels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [ms_scan, tumour_scan, nodule_crop, pelvis_scan])
def test_a_seed_gives_the_same_voxels_and_another_one_others(draw):
    one, again, other = (draw(seed, (24, 24, 10)) for seed in (3, 3, 4))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.label, again.label)
    assert (one.image != other.image).mean() > 0.3
    assert (one.label != other.label).any()


@pytest.mark.parametrize("scans", ["ms", "tumours"])
def test_the_brain_is_cut_out_and_holds_all_that_is_labelled(scans, request):
    for scan in request.getfixturevalue(scans):
        brain = scan.image.all(-1)
        assert np.array_equal(brain, scan.image.any(-1))
        assert 0.25 < brain.mean() < 0.6
        assert ndimage.label(brain)[1] == 1
        assert brain[scan.label > 0].all()
        assert not any(brain[side].any() for side in (0, -1))


def test_lesions_vary_in_size_and_shine_in_flair(ms):
    volumes = []
    for scan in ms:
        parts, number = ndimage.label(scan.label)
        assert 5 <= number <= 14
        volumes += ndimage.sum_labels(scan.label, parts, range(1, number + 1)).tolist()
        flair, brain = scan.image[..., 0].astype(float), scan.image.any(-1)
        rest = flair[brain & ~ndimage.binary_dilation(scan.label == 1, iterations=2)]
        assert flair[scan.label == 1].mean() > rest.mean() + 1.5 * rest.std()
    assert min(volumes) <= 8 < 150 < max(volumes), "some of a few voxels, some of more than a hundred"


def test_lesions_gather_around_the_ventricles():
    spacing, near, far = (0.8, 0.8, 2.2), [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        tissue = brain_tissue(rng, (64, 64, 24), spacing)
        lesions = ms_lesions(rng, tissue, spacing)
        spaces, _ = ndimage.label((tissue == FLUID) | (tissue == OUTSIDE))
        ventricles = (tissue == FLUID) & (spaces != spaces[0, 0, 0])
        distance = ndimage.distance_transform_edt(~ventricles, sampling=spacing)
        near.append(distance[lesions].mean())
        far.append(distance[(tissue == 3) & ~lesions].mean())
    assert np.mean(near) < 0.8 * np.mean(far)


def test_lesions_are_as_large_in_mm_on_other_voxels():
    coarse = np.mean([ms_scan(seed, (48, 48, 20), (1.0, 1.0, 2.4)).label.sum() * 2.4 for seed in range(8)])
    fine = np.mean([ms_scan(seed, (64, 64, 32), (0.75, 0.75, 1.5)).label.sum() * 0.84375 for seed in range(8)])
    assert 0.6 < fine / coarse < 1.6


def test_a_tumour_is_nested_and_its_ring_takes_up_contrast(tumours):
    beside = ndimage.generate_binary_structure(3, 1)
    beside[..., [0, 2]] = False  # slices are as thick as the ring
    for scan in tumours:
        sizes = np.bincount(scan.label.ravel(), minlength=4)[1:]
        assert sizes[1] > sizes[2] > 0 < sizes[0]
        around_core = ndimage.binary_dilation(scan.label == 1, beside) & (scan.label != 1)
        assert np.isin(scan.label[around_core], (1, 3)).mean() > 0.8, "the core lies in the ring, or at a ventricle"
        around_ring = ndimage.binary_dilation(scan.label == 3, beside) & (scan.label != 3)
        assert (scan.label[around_ring] > 0).mean() > 0.6, "the ring lies in the oedema, or at the brain's surface"
        t1, t1ce = scan.image[..., 1].astype(float), scan.image[..., 2].astype(float)
        taken_up = [t1ce[scan.label == k].mean() / t1[scan.label == k].mean() for k in range(1, 4)]
        assert taken_up[2] > 1.2 * max(taken_up[:2])


def test_nodules_vary_in_size_and_density_and_are_one_piece_in_the_middle():
    volumes, contrasts = [], []
    for seed in range(12):
        nodule = nodule_crop(seed, (48, 48, 24))
        inside = nodule.label == 1
        assert inside[24, 24, 12]
        pieces, _ = ndimage.label(inside, np.ones((3, 3, 3)))
        assert (pieces == pieces[24, 24, 12])[inside].mean() > 0.95
        volumes.append(inside.sum())
        near = ndimage.binary_dilation(inside, iterations=6) & ~ndimage.binary_dilation(inside, iterations=3)
        contrasts.append(np.median(nodule.image[inside]) - np.median(nodule.image[near]))
    assert max(volumes) > 10 * min(volumes)
    assert 200 < min(contrasts) < 450 < 600 < max(contrasts), "from a veil to solid"


def test_readers_differ_as_they_are_said_to():
    """In mm, on voxels that are thick along one axis."""
    spacing = (1.0, 0.5, 2.5)
    true = nodule_crop(3, (32, 48, 16), spacing).label
    beyond = ndimage.distance_transform_edt(true == 0, sampling=spacing)
    within = ndimage.distance_transform_edt(true == 1, sampling=spacing)
    seen = []
    for seed in range(40):
        faithful, large, small, sometimes = read_nodule(np.random.default_rng(seed), true, spacing) == 1
        assert np.array_equal(large, beyond <= 2)
        assert np.array_equal(small | (within <= 1), true | (within <= 1)), "what is deeper than 1 mm stays"
        assert small.sum() < true.sum() <= faithful.sum() < large.sum()
        assert faithful[true == 1].all()
        assert (beyond[faithful] <= 1).all()
        seen.append(sometimes.any())
        assert (sometimes[true == 1].all() and (beyond[sometimes] <= 2).all()) if seen[-1] else not sometimes.any()
    assert 0.45 < np.mean(seen) < 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"shape": (8, 8, 7)}, "shape must be three numbers of voxels, each at least 8, got .8, 8, 7."),
        ({"shape": (64, 64)}, "shape must be three numbers"),
        ({"spacing": (1, 1, 0)}, "spacing must be three lengths in mm above 0, got .1, 1, 0."),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ms_scan(**{"seed": 0, **arguments})


# ---- Data sets -------------------------------------------------------------------------------------------------------


def test_ms_items_are_those_of_data_prep_with_a_true_label(tmp_path):
    folder = write_ms_dataset(tmp_path / "ms", spacing=(0.8, 0.9, 2.2), **FEW)
    assert verify_prepared(folder, "data_prep/ms_lesions.py", **MS_RULES) == 4 * 5
    (item,) = load_datalist(folder / "datalist.json", "test")
    assert [name.rsplit("/", 1)[1] for name in item["image"]] == [
        f"{modality}.nii.gz" for modality in ("flair", "mprage", "pd", "t2")
    ]
    assert (item["spacing"], item["case"]) == ([0.8, 0.9, 2.2], {"patient": "synthetic01", "visit": 1})
    assert "positive" not in item
    image = nibabel.load(item["image"][0])
    assert image.header.get_zooms() == pytest.approx((0.8, 0.9, 2.2))
    np.testing.assert_allclose(image.affine @ [11.5, 11.5, 4.5, 1], [0, 0, 0, 1], atol=1e-5)
    assert set(np.unique(load(item["label"]))) == {0, 1}


def test_slices_are_those_of_the_volume_in_its_places(tmp_path):
    slices = write_brats_dataset(tmp_path / "slices", spacing=(2.0, 2.0, 4.0), **FEW)
    volumes = write_brats_dataset(tmp_path / "volumes", spacing=(2.0, 2.0, 4.0), volumes=True, **FEW)
    assert verify_prepared(slices, "x", label_values=(0, 1, 2, 3), mask_keys=()) > 40
    (whole,) = load_datalist(volumes / "datalist.json", "test")
    image, label, affine = load(whole["image"]), load(whole["label"]), nibabel.load(whole["image"]).affine
    items = load_datalist(slices / "datalist.json", "test")
    numbers = [item["case"]["slice"] for item in items]
    assert numbers == np.flatnonzero(image.any((0, 1, 3))).tolist() != list(range(10)), "only those with brain"
    for item, k in zip(items, numbers, strict=True):
        assert np.array_equal(load(item["image"]), image[:, :, k : k + 1])
        assert np.array_equal(load(item["label"]), label[:, :, k : k + 1])
        np.testing.assert_allclose(nibabel.load(item["image"]).affine @ [1, 2, 0, 1], affine @ [1, 2, k, 1], atol=1e-5)
    assert {name: json.loads((slices / "datalist.json").read_text())["labels"][name] for name in "123"} == {
        "1": "necrotic or non-enhancing core", "2": "oedema", "3": "enhancing tumour",
    }  # fmt: skip


def test_lidc_items_are_those_of_data_prep_with_a_true_label(tmp_path):
    folder = write_lidc_dataset(tmp_path / "lidc", spacing=(1.0, 1.0, 2.0), seed=4, **FEW)
    items = load_datalist(folder / "datalist.json", "test")
    assert [item["case"] for item in items] == [
        {"scan": "synthetic01", "patient": "synthetic01", "nodule": 1, "slice": k + 1} for k in range(len(items))
    ]
    assert "annotators" in json.loads((folder / "datalist.json").read_text())
    names = {name.rsplit("/", 1)[1] for item in items for name in [item["image"], item["label"], *item["positive"]]}
    parts = ["image", "label", *(f"reader{r}" for r in range(1, 5))]
    assert names == {f"01_{k + 1:03d}_{part}.nii.gz" for k in range(len(items)) for part in parts}
    own_seed = int(np.random.SeedSequence([4, 0]).generate_state(1)[0])
    nodule = nodule_crop(own_seed, FEW["shape"], (1.0, 1.0, 2.0))
    reached = np.flatnonzero(nodule.readers.any((0, 1, 2)))
    assert len(items) == len(reached) > 2
    for item, k in zip(items, reached, strict=True):
        assert np.array_equal(load(item["image"])[..., 0], nodule.image[..., k])
        assert np.array_equal(load(item["label"])[..., 0], nodule.label[..., k])
        assert np.array_equal([load(name)[..., 0] for name in item["positive"]], nodule.readers[..., k])
        assert item["marked"] == nodule.readers.any((1, 2, 3)).astype(int).tolist()
        image = nibabel.load(item["image"])
        np.testing.assert_allclose(image.affine @ [11.5, 11.5, 0, 1], [0, 0, 2.0 * (k - 4.5), 1], atol=1e-5)


@pytest.mark.parametrize("write", [write_ms_dataset, write_brats_dataset, write_lidc_dataset])
def test_a_data_set_is_drawn_once_and_never_mixed_with_another(tmp_path, write):
    folder = write(tmp_path / "data", **FEW)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write(folder, **FEW) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(FileExistsError, match="holds a data set drawn by generator version"):
        write(folder, **FEW, seed=1)
    with pytest.raises(ValueError, match="numbers of patients must be at least 1"):
        write(tmp_path / "none", **(FEW | {"num_test": 0}))


def test_test_patients_do_not_depend_on_the_number_for_training(tmp_path):
    few, more = (write_ms_dataset(tmp_path / str(n), **(FEW | {"num_training": n})) for n in (1, 2))
    labels = [load(load_datalist(folder / "datalist.json", "test")[0]["label"]) for folder in (few, more)]
    assert np.array_equal(*labels)
    patients = [item["case"]["patient"] for name in ("training", "validation", "test")
                for item in load_datalist(more / "datalist.json", name)]  # fmt: skip
    assert len(set(patients)) == len(patients) == 4


# ---- A pelvis with strokes -------------------------------------------------------------------------------------------


def test_strokes_are_few_and_mostly_right():
    for seed in range(4):
        scan = pelvis_scan(seed)
        drawn = scan.strokes != 255
        assert 0.003 < drawn.mean() < 0.03
        for k in range(3):
            said = scan.strokes == k
            assert said.any()
            assert (scan.label[said] == k).mean() > 0.75, "a pen is wider than the zone in places"
        slices = drawn.any((0, 1))
        shown = (scan.label > 0).any((0, 1))
        assert 0.4 < slices[shown].mean() < 0.8, "every other slice"


def test_nothing_is_drawn_where_there_is_no_organ():
    assert (draw_strokes(np.random.default_rng(0), np.zeros((16, 16, 4), np.uint8), (1, 1, 3)) == 255).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_loop_closes_around_the_organ(seed):
    scan = pelvis_scan(seed, loop_mm=6.0)
    filled = fill_beyond_loops(scan.strokes)
    organ = scan.label > 0
    drawn_on = [k for k in range(organ.shape[2]) if organ[:, :, k].any() and (scan.strokes[:, :, k] == 0).any()]
    assert len(drawn_on) > 3
    for k in drawn_on:
        background = filled[:, :, k] == 0
        assert not (background & organ[:, :, k]).any()
        away = ndimage.distance_transform_edt(~organ[:, :, k], sampling=(1.25, 1.25))
        assert background[away > 6.0 * 4 / 3 + 2].all(), "all beyond the loop"
        assert not background[away < 6.0 * 2 / 3 - 2].any(), "and nothing within"
    assert (filled == 0).sum() > 10 * (scan.strokes == 0).sum()


def test_a_loop_is_some_way_off():
    with pytest.raises(ValueError, match="loop_mm must be a positive distance"):
        pelvis_scan(0, (24, 24, 12), (4, 4, 5), loop_mm=0)


def test_the_organ_cannot_be_told_by_its_brightness_alone():
    """Half of what is as bright as a zone is something else: a threshold does not do."""
    scan = pelvis_scan(0)
    for k in (1, 2):
        low, high = np.percentile(scan.image[scan.label == k], [10, 90])
        alike = (scan.image >= low) & (scan.image <= high)
        assert (scan.label[alike] == k).mean() < 0.3


def test_drawings_are_files_as_a_person_has_them(tmp_path):
    """0 is undrawn, as ITK-SNAP has it; images differ in size and spacing, drawings lie on their image."""
    folder = write_pelvis_dataset(tmp_path / "mri", 4, 1, 1, shape=(24, 24, 12), spacing=(4.0, 4.0, 5.0))
    items = load_datalist(folder / "datalist.json", "training")
    shapes = set()
    for item in items:
        image, drawing, label = (nibabel.load(item[key]) for key in ("image", "drawing", "label"))
        assert image.shape == drawing.shape == label.shape
        np.testing.assert_allclose(image.header.get_zooms(), item["spacing"], rtol=1e-5)
        np.testing.assert_allclose(image.affine, drawing.affine)
        values = np.asanyarray(drawing.dataobj)
        assert set(np.unique(values)) <= {0, 1, 2, 3}
        assert (values == 0).mean() > 0.9
        assert (np.asanyarray(label.dataobj)[values == 3] == 0).mean() > 0.9
        shapes.add(image.shape)
    assert len(shapes) == 2


@pytest.mark.parametrize(("loop_mm", "ratio"), [(None, 0.5), (8.0, 0.5), (8.0, 0.3)])
def test_what_is_spread_in_a_prostate_is_nearly_all_background(loop_mm, ratio):
    """The figures of `spread_background`, and that the strokes themselves allow it; 0.3 is beside closed lines."""
    added, right, undrawn, losing = 0, 0, 0, []
    for seed in range(6):
        scan = pelvis_scan(seed, loop_mm=loop_mm)
        strokes = fill_beyond_loops(scan.strokes) if ratio == 0.3 else scan.strokes
        spread = (spread_background(strokes, (1.25, 1.25, 3.6), ratio) == 0) & (strokes == 255)
        added, right = added + spread.sum(), right + (spread & (scan.label == 0)).sum()
        undrawn += ((strokes == 255) & (scan.label == 0)).sum()
        losing += losing_ratios(strokes, (1.25, 1.25, 3.6))
    assert right / added > 0.995
    assert right / undrawn > 0.45
    assert safe_ratio(losing, looped=ratio == 0.3) == ratio
