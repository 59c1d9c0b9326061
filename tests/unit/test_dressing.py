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
    values = []
    for point in region:
        point = np.clip(point + step, 0, np.array(shape) - 1)
        distances = np.square(places - point).sum(1)
        mirrored = []
        for near in places[distances == distances.min()]:  # several may be as near
            mirror = np.clip(2 * near - point, 0, np.array(shape) - 1)
            mirrored.append(source.image[(slice(None), *(mirror if at(drawn, mirror) else near))])
        values.append(mirrored)
    return values


def problem(shape, source_shape, seed):
    rng = np.random.default_rng(seed)
    where = rng.random(shape) < 0.3
    where[tuple(0 for _ in shape)] = True
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
    assert len(values - {0.0}) >= 1


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
