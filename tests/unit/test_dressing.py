"""Synthetic images in real pixels."""

import itertools

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import CacheDataset, MetaTensor
from PIL import Image
from scipy import ndimage

from medcoarse.pictures import class_colours
from medcoarse.selftrain.dressing import DressSyntheticd, Source, SyntheticSheet, cover, dress


def slow_cover(where, source, drawn):
    """Every step tried, pixel by pixel."""
    region, shape = np.argwhere(where), drawn.shape
    box, far = region.min(0), [range(-n, m) for n, m in zip(where.shape, shape, strict=True)]

    def at(values, point):
        return all(0 <= x < n for x, n in zip(point, values.shape, strict=True)) and bool(values[tuple(point)])

    overlaps = {step: sum(at(drawn, point + step) for point in region) for step in itertools.product(*far)}
    best = max(overlaps.values())
    able = [step for step, overlap in overlaps.items() if overlap >= 0.95 * best]
    step = np.array(min(able, key=lambda step: (sum(x * x for x in step), tuple(box + step))))
    places = np.argwhere(drawn)

    def folded(point):  # the line of indices, written out mirrored on either side
        lines = [np.pad(np.arange(n), 60, mode="symmetric") for n in shape]
        return np.array([line[x + 60] for line, x in zip(lines, point, strict=True)])

    values = []
    for point in region:
        point = folded(point + step)
        distances = np.square(places - point).sum(1)
        mirrored = []
        for near in places[distances == distances.min()]:  # several may be as near
            mirror = folded(2 * near - point)
            mirrored.append(source.image[(slice(None), *(mirror if drawn[tuple(mirror)] else near))])
        values.append(mirrored)
    return values


def problem(shape, source_shape, seed):
    rng = np.random.default_rng(seed)
    where = rng.random(shape) < 0.3
    where[: shape[0] // 2] &= seed % 2 == 0  # some begin at the border, some do not
    where[tuple(n - 1 for n in shape)] = True
    drawing = np.where(rng.random(source_shape) < 0.3, rng.integers(0, 2, source_shape), 255).astype(np.uint8)
    drawing[tuple(n // 2 for n in source_shape)] = 1
    image = np.arange(2 * np.prod(source_shape), dtype=np.float32).reshape(2, *source_shape)  # all different
    return where, Source(image, drawing)


@pytest.mark.parametrize(
    ("shape", "source_shape"),
    [((7, 6), (7, 6)), ((5, 4), (8, 9)), ((9, 8), (4, 5)), ((4, 3, 5), (3, 4, 5)), ((6,), (9,))],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_region_is_covered_as_by_loops(shape, source_shape, seed):
    where, source = problem(shape, source_shape, seed)
    found = cover(where, source, source.drawing == 1)
    for value, allowed in zip(found.T, slow_cover(where, source, source.drawing == 1), strict=True):
        assert any(np.array_equal(value, one) for one in allowed)


def test_a_region_that_was_drawn_as_it_is_shows_the_very_pixels():
    where, source = problem((12, 12), (12, 12), 0)
    found = cover(where, source, where)
    np.testing.assert_array_equal(found, source.image[:, where])


def test_a_region_goes_to_the_nearest_place_that_is_nearly_as_good():
    drawn = np.zeros((8, 60), bool)
    drawn[2:6, 5:10], drawn[2:6, 40:45] = True, True
    drawn[2, 40] = False  # the nearer place has 19 of the 20 pixels: 0.95 of the best
    where = np.zeros(drawn.shape, bool)
    where[2:6, 38:43] = True
    source = Source(np.arange(drawn.size, dtype=np.float32).reshape(1, *drawn.shape), np.zeros(drawn.shape, np.uint8))
    assert set(cover(where, source, drawn)[0]) == set(source.image[0][drawn & (np.arange(60) > 30)])
    drawn[3, 40] = False  # now it has 18
    assert set(cover(where, source, drawn)[0]) == set(source.image[0][drawn & (np.arange(60) < 30)])


def test_beyond_its_borders_a_source_goes_on_mirrored():
    source = Source(np.arange(6, dtype=np.float32)[None], np.zeros(6, np.uint8))
    found = cover(np.ones(14, bool), source, np.ones(6, bool))[0]
    assert found.tolist() == [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0, 0, 1]


def test_only_borders_of_what_was_dressed_are_blurred():
    label = np.array([0, 0, 0, 1, 1, 1, 2, 2, 255, 0, 0], np.uint8)  # nobody drew 2, and 1 only on the second source
    image = np.array([[9.0] * 6 + [4, 6, -1000, np.nan, 5]], np.float32)
    sources = [Source(np.full((1, 4), value, np.float32), np.full(4, k, np.uint8)) for k, value in enumerate((10, 20))]
    image[0, 9] = 7
    dressed = dress(image, label, sources, np.random.default_rng(0), min_pixels=1)[0]
    assert dressed[[0, 1, 4]].tolist() == [10, 10, 20]
    assert 10 < dressed[2] < 15 < dressed[3] < 20
    assert dressed[2] + dressed[3] == pytest.approx(30, abs=1e-4)
    assert 4 < dressed[6] < dressed[5] < 20
    assert dressed[7:10].tolist() == [6, -1000, 10], "beside what has no label nothing changes"
    assert dressed[10] == 10
    bare = dress(image, label, sources, np.random.default_rng(0), min_pixels=5)[0]
    np.testing.assert_array_equal(bare, image[0])


@pytest.mark.parametrize("shape", [(24, 20), (15, 14, 12)])
def test_every_region_shows_its_class_and_what_nobody_drew_stays(shape):
    rng = np.random.default_rng(0)
    label = np.zeros(shape, np.uint8)
    label[: shape[0] // 3], label[-shape[0] // 4 :] = 1, 2
    label[:, : shape[1] // 4] = 255
    sources = []
    for _ in range(3):  # class 0 is drawn in [10, 20), class 1 in [20, 30), class 2 by nobody
        drawing = rng.choice([0, 1, 255], shape).astype(np.uint8)
        values = 10 * (drawing + 1.0) + rng.random(shape) * 9
        sources.append(Source(np.where(drawing == 255, -1e6, values).astype(np.float32)[None], drawing))
    image = rng.random((1, *shape)).astype(np.float32)
    before = image.copy()
    dressed = dress(image, label, sources, rng)[0]
    inner = ndimage.maximum_filter(label, 3) == ndimage.minimum_filter(label, 3)  # nothing is blurred there
    assert ((dressed >= 10) & (dressed < 20))[inner & (label == 0)].all()
    assert (inner & (label == 0)).any()
    assert ((dressed >= 20) & (dressed < 30))[inner & (label == 1)].all()
    assert (inner & (label == 1)).any()
    for kept in (2, 255):
        np.testing.assert_array_equal(dressed[inner & (label == kept)], before[0][inner & (label == kept)])
    np.testing.assert_array_equal(image, before)


def test_only_images_with_enough_of_a_class_are_sources_of_it():
    few, many = (np.full((8, 8), 255, np.uint8) for _ in range(2))
    few[0, :3], many[0, :4] = 1, 1
    sources = [Source(np.full((1, 8, 8), value, np.float32), one) for value, one in ((5, few), (7, many))]
    label, image = np.ones((6, 6), np.uint8), np.zeros((1, 6, 6), np.float32)
    for seed in range(8):
        assert (dress(image, label, sources, np.random.default_rng(seed), min_pixels=4) == 7).all()
    assert (dress(image, label, sources, np.random.default_rng(0), min_pixels=5) == 0).all()


def test_regions_take_sources_of_their_own_and_small_ones_one_together():
    sources = [Source(np.full((1, 9, 9), n, np.float32), np.ones((9, 9), np.uint8)) for n in range(50)]
    label = np.full((12, 9), 255, np.uint8)
    label[:4, :4], label[:4, 5:] = 1, 1
    label[6::3, ::4] = 1  # six single pixels
    seeds = []
    for seed in range(5):
        dressed = dress(np.zeros((1, 12, 9), np.float32), label, sources, np.random.default_rng(seed), min_pixels=4)[0]
        seeds.append((dressed[1, 1], dressed[1, 7], dressed[6, 0]))
        singles = dressed[6::3, ::4]  # blurred alike, but for the edge of the image
        assert singles[:, 1].std() < 0.02 * max(1, singles[:, 1].mean())
    assert sum(len(set(one)) == 3 for one in seeds) >= 4  # chance that two of three agree: 1 in 17


def test_images_and_maps_of_other_sizes_are_refused():
    image, label = np.zeros((1, 4, 4), np.float32), np.zeros((4, 4), np.uint8)
    for wrong in ((image, np.zeros((5, 4), np.uint8), []), (image, label, [Source(image, np.zeros((4, 5), np.uint8))])):
        with pytest.raises(ValueError, match="must be of one size"):
            dress(*wrong, np.random.default_rng(0))


def test_images_of_other_channels_or_dimensions_are_refused():
    source = Source(np.zeros((3, 4, 4), np.float32), np.zeros((4, 4), np.uint8))
    for image, label in ((np.zeros((1, 4, 4)), np.zeros((4, 4))), (np.zeros((3, 4, 4, 4)), np.zeros((4, 4, 4)))):
        with pytest.raises(ValueError, match="as many channels and dimensions"):
            dress(image.astype(np.float32), label.astype(np.uint8), [source], np.random.default_rng(0))


# --- transform ---------------------------------------------------------------------------------------------------


def real_items(number=4):
    """Without masks: dressing must not need them."""
    rng = np.random.default_rng(1)
    drawings = [torch.from_numpy(rng.choice([0, 1, 255], (1, 10, 12)).astype(np.uint8)) for _ in range(number)]
    return [{"image": torch.full((3, 10, 12), float(n)), "positive": one} for n, one in enumerate(drawings, 1)]


def synthetic_items(number=5):
    rng = np.random.default_rng(2)
    labels = [torch.from_numpy(rng.integers(0, 2, (1, 10, 12)).astype(np.float32)) for _ in range(number)]
    return [{"image": MetaTensor(torch.zeros(3, 10, 12)), "label": one, "synthetic": True} for one in labels]


def test_the_same_mask_is_always_dressed_alike():
    items, make = synthetic_items(), lambda seed=3: DressSyntheticd("image", real_items(), min_pixels=8, seed=seed)
    one_by_one = [make()(item)["image"] for item in items]
    backwards = make()
    for item, expected in reversed(list(zip(items, one_by_one, strict=True))):
        torch.testing.assert_close(backwards(item)["image"], expected, rtol=0, atol=0)
    for workers in (0, 3):
        cached = CacheDataset(items, make(), num_workers=workers, progress=False)
        for item, expected in zip(cached, one_by_one, strict=True):
            torch.testing.assert_close(item["image"], expected, rtol=0, atol=0)
    assert isinstance(one_by_one[0], MetaTensor)
    masks = [torch.ones(1, 10, 12) * (torch.arange(12) < n) for n in range(4, 12)]  # each takes a source of its own
    flat = [make()(dict(items[0], label=mask))["image"][0, 0, 0].item() for mask in masks]
    assert len(set(flat)) > 1
    others = [make(seed=4)(item)["image"] for item in items]
    assert not all(torch.equal(one, other) for one, other in zip(one_by_one, others, strict=True))


def test_real_items_pass_unchanged():
    dresser = DressSyntheticd("image", real_items(), min_pixels=8)
    item = synthetic_items(1)[0]
    for flag in ({"synthetic": False}, {}):
        real = {key: value for key, value in item.items() if key != "synthetic"} | flag
        assert torch.equal(dresser(real)["image"], item["image"])


def test_people_who_contradict_each_other_show_nothing():
    drawn = torch.tensor([[[0, 0, 1, 1]] * 4, [[0, 1, 1, 255]] * 4], dtype=torch.uint8)
    real = {"image": torch.arange(4.0).repeat(1, 4, 1), "positive": drawn}
    item = {"image": torch.full((1, 4, 4), 9.0), "label": torch.ones(1, 4, 4), "synthetic": True}
    assert (DressSyntheticd("image", [real], min_pixels=1)(item)["image"] == 2).all()


def test_no_more_real_items_are_read_than_asked_for():
    class Counted(list):
        reads = 0

        def __getitem__(self, number):
            self.reads += 1
            return super().__getitem__(number)

    sources = Counted(real_items(6))
    dresser = DressSyntheticd("image", sources, min_pixels=8, num_sources=2)
    for item in synthetic_items():
        values = set(dresser(item)["image"].unique().round().tolist())
    assert sources.reads == 2
    read = {DressSyntheticd("image", real_items(6), num_sources=2, seed=seed)._read[0].image.max() for seed in range(6)}
    assert len(read) > 1, "at random"
    assert len(values - {0.0}) >= 1


@pytest.mark.parametrize(
    ("real", "synthetic", "message"),
    [
        ({"positive": torch.zeros(0, 10, 12)}, {}, "'positive' has no annotators"),
        (
            {"positive": torch.full((1, 10, 12), 256.0)},
            {},
            "'positive' must hold classes from 0 to 254, or 255, got 256",
        ),
        ({}, {"label": torch.full((1, 10, 12), 0.5)}, "'label' must hold classes"),
        ({}, {"label": torch.zeros(1, 10, 11)}, "must be of one size"),
    ],
)
def test_maps_that_are_none(real, synthetic, message):
    dresser = DressSyntheticd("image", [real_items(1)[0] | real], min_pixels=8)
    with pytest.raises(ValueError, match=message):
        dresser(synthetic_items(1)[0] | synthetic)


def test_items_without_maps_say_what_they_have():
    item = {"image": torch.zeros(1, 2, 2), "synthetic": True}
    with pytest.raises(ValueError, match=r"dressing needs 'label', the item has \['image', 'synthetic'\]"):
        DressSyntheticd("image", real_items())(item)
    with pytest.raises(ValueError, match="dressing needs 'positive', the item has"):
        DressSyntheticd("image", [{"image": torch.zeros(3, 10, 12)}])(synthetic_items(1)[0])


def test_bytes_are_rounded():
    item = synthetic_items(1)[0] | {"image": torch.zeros(3, 10, 12, dtype=torch.uint8)}
    dressed = DressSyntheticd("image", real_items(), min_pixels=8)(item)["image"]
    exact = DressSyntheticd("image", real_items(), min_pixels=8)(synthetic_items(1)[0])["image"]
    assert dressed.dtype == torch.uint8
    assert torch.equal(dressed.float(), exact.round().as_tensor())


@pytest.mark.parametrize(
    "wrong", [{"keys": ["image", "other"]}, {"sources": []}, {"num_sources": 0}, {"seed": -1}, {"min_pixels": 0}]
)
def test_what_dressing_does_not_take(wrong):
    with pytest.raises(ValueError, match="dressing needs one key"):
        DressSyntheticd(**{"keys": "image", "sources": real_items(), **wrong})


def test_a_sheet_shows_images_beside_masks_and_none_for_none(tmp_path):
    items = [{"image": np.full((3, 5, 4), n / 2), "label": np.full((1, 5, 4), n)} for n in range(3)]
    engine = Engine(lambda engine, batch: None)
    SyntheticSheet(items, tmp_path / "figures" / "some.png", num_classes=3, number=2).attach(engine)
    SyntheticSheet(items, tmp_path / "none.png", num_classes=3, number=0).attach(engine)
    engine.run([0])
    with Image.open(tmp_path / "figures" / "some.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (2 * 4, 2 * 5, 3)
    colours = class_colours(3, background=None)
    for n in range(2):
        row = pixels[4 * n : 4 * n + 4]
        assert (abs(row[:, :5] - 127.5 * n) <= 1).all()
        assert (row[:, 5:] == colours[n]).all()
    assert not (tmp_path / "none.png").exists()


def test_a_sheet_of_volumes_of_different_sizes(tmp_path):
    items = [{"image": np.zeros((1, 5, 4, 3)), "label": np.zeros((1, 5, 4, 3))}]
    items.append({"image": np.zeros((1, 7, 2, 5)), "label": np.full((1, 7, 2, 5), 1)})
    SyntheticSheet(items, tmp_path / "volumes.png", num_classes=2)(None)
    with Image.open(tmp_path / "volumes.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (4 + 2, 14, 3)
    assert (pixels[4:, 7:] == class_colours(2, background=None)[1]).all()


def test_only_the_first_process_draws(tmp_path, monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    engine = Engine(lambda engine, batch: None)
    items = [{"image": np.zeros((1, 5, 4)), "label": np.zeros((1, 5, 4))}]
    SyntheticSheet(items, tmp_path / "some.png", num_classes=2).attach(engine)
    engine.run([0])
    assert not (tmp_path / "some.png").exists()
