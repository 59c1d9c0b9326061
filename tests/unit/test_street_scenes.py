"""Cityscapes' classes, drawn streets, and the inferer for large pictures."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from medcoarse.annotators import draw
from medcoarse.cityscapes import CLASSES, LABELS, class_table, paint_polygons
from medcoarse.confusion import Annotations, LowRankConfusion
from medcoarse.datalist import DataError
from medcoarse.inferers import MultiScaleInferer
from medcoarse.networks import CoupledModel
from medcoarse.profiles import CITYSCAPES_WIDTH, PROFILES
from medcoarse.synthetic.street import street_scene, write_street_dataset
from medcoarse.synthetic.things import THINGS, Thing, paint

# --- classes -----------------------------------------------------------------------------------------------------


def test_the_benchmark_s_classes():
    """Train ids 0 to 18 as the data set's own table has them."""
    official = "7 8 11 12 13 17 19 20 21 22 23 24 25 26 27 28 31 32 33"
    assert " ".join(map(str, CLASSES.values())) == official
    assert list(CLASSES)[:3] == ["road", "sidewalk", "building"]
    assert list(CLASSES)[-3:] == ["train", "motorcycle", "bicycle"]
    assert sorted(LABELS.values()) == list(range(-1, 34))


def test_a_class_is_the_place_of_its_label_id():
    picture = Image.fromarray(np.array([[26, 7, 0, 255]], np.uint8))
    assert np.array(picture.point(class_table([7, 26]))).tolist() == [[1, 0, 255, 255]]


@pytest.mark.parametrize("wrong", [[7, 7], [7, 34], [-1, 7], [255, 7]])
def test_a_table_of_ids_that_are_none_is_refused(wrong):
    with pytest.raises(ValueError, match=r"different ids of Cityscapes, 0 to 33, got \["):
        class_table(wrong)


def test_polygons_are_painted_as_the_data_set_s_own_label_maps(tmp_path):
    """Later ones lie on top; groups count as what they are of; a negative id is not painted: a plate is car."""
    square = [[0, 0], [7, 0], [7, 3], [0, 3]]
    content = {
        "imgWidth": 8,
        "imgHeight": 4,
        "objects": [
            {"label": "road", "polygon": square},
            {"label": "cargroup", "polygon": [[4, 0], [7, 0], [7, 1], [4, 1]]},
            {"label": "license plate", "polygon": [[5, 1], [6, 1], [6, 1]]},
            {"label": "license plate", "polygon": [[0, 3], [1, 3], [1, 3]]},
            {"label": "polegroup", "polygon": [[0, 0], [0, 1], [0, 0]]},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    paint_polygons(tmp_path / "a.json", tmp_path / "a.png")
    expected = np.full((4, 8), 7)
    expected[:2, 4:] = 26
    expected[:2, 0] = 18
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), expected)


def test_a_polygon_of_something_else_is_refused(tmp_path):
    thing = {"label": "dragon", "polygon": [[0, 0], [1, 0], [1, 1]]}
    (tmp_path / "a.json").write_text(json.dumps({"imgWidth": 8, "imgHeight": 4, "objects": [thing]}))
    with pytest.raises(DataError, match=r"a\.json: 'dragon' is no label of Cityscapes"):
        paint_polygons(tmp_path / "a.json", tmp_path / "a.png")


# --- drawn streets -----------------------------------------------------------------------------------------------


def test_a_seed_gives_one_scene_and_another_seed_another():
    one, again, other = (street_scene(seed, (64, 128)) for seed in (3, 3, 4))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.label, again.label)
    assert (one.label != other.label).mean() > 0.1


def test_the_same_street_at_any_size():
    small, large = street_scene(5, (96, 192)).label, street_scene(5, (192, 384)).label[1::2, 1::2]
    assert (small == large).mean() > 0.9


def test_streets_show_every_class_and_look_like_streets():
    labels = np.stack([street_scene(seed, (96, 192)).label for seed in range(24)])
    assert set(CLASSES.values()) <= set(np.unique(labels).tolist()) <= set(LABELS.values())
    shares = {name: (labels == number).mean() for name, number in CLASSES.items()}
    assert 0.2 < shares["road"] < 0.45
    assert shares["building"] > shares["car"] > shares["traffic sign"] > 0
    where = {name: np.argwhere(labels == number)[:, 1].mean() / 96 for name, number in CLASSES.items()}
    assert where["sky"] < where["building"] < where["car"] < where["road"]


def test_classes_differ_in_colour():
    """A picture that a network can learn from: sky is brighter than road, trees are green."""
    scenes = [street_scene(seed, (64, 128)) for seed in range(4)]
    pixels = {name: np.concatenate([s.image[s.label == CLASSES[name]] for s in scenes]) for name in CLASSES}
    assert pixels["sky"].mean() > pixels["road"].mean() + 30
    assert pixels["vegetation"][:, 1].mean() > pixels["vegetation"][:, [0, 2]].mean() + 8
    assert pixels["road"].std() > 5


@pytest.mark.parametrize("name", sorted(THINGS))
def test_a_thing_lies_in_its_picture_wherever_it_stands(name):
    for foot in ((30.0, 16.0), (30.0, 0.0), (30.0, 31.0), (34.0, 16.0), (4.0, 16.0)):
        label, image = np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3), np.float32)
        paint(Thing(name, 0, 10, 1), label, image, foot, (24.0, 16.0), np.ones(3, np.float32), np.zeros(3, np.float32))
        assert set(np.unique(label).tolist()) <= {0, *LABELS.values()}
        assert np.isfinite(image).all()
        assert (label[31:] == 0).all() or foot[0] > 31, "nothing below its foot"
    assert label.any() or name in ("sign", "light"), "a part of it is seen"


@pytest.mark.parametrize(("seed", "size", "message"), [(-1, (64, 64), "seed must be 0"), (0, (16, 64), "at least 32")])
def test_impossible_scenes(seed, size, message):
    with pytest.raises(ValueError, match=message):
        street_scene(seed, size)


def test_a_data_set_is_reused_and_no_other_overwritten(tmp_path):
    folder = write_street_dataset(tmp_path / "a", 1, 1, 1, size=(32, 64))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    write_street_dataset(folder, 1, 1, 1, size=(32, 64))
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    with pytest.raises(FileExistsError, match="delete this one"):
        write_street_dataset(folder, 2, 1, 1, size=(32, 64))
    content = json.loads((folder / "datalist.json").read_text())
    assert content["label_ids"] == list(CLASSES.values())
    first = np.array(Image.open(folder / content["test"][0]["label"]))
    more = write_street_dataset(tmp_path / "b", 3, 2, 1, size=(32, 64))
    assert np.array_equal(first, np.array(Image.open(more / content["test"][0]["label"])))


# --- coarse drawings of many classes -----------------------------------------------------------------------------


def test_a_coarse_drawing_is_about_what_people_draw_of_cityscapes():
    """63 % of the pixels, nearly all of them right; poles are mostly left out."""
    drawn, right, known, poles = 0, 0, 0, [0, 0]
    table = np.array(class_table(list(CLASSES.values())), np.uint8)
    for seed in range(6):
        label = table[street_scene(seed, (180, 240)).label]
        profile = PROFILES["cityscapes_positive"]
        said = draw(profile, label, None, CITYSCAPES_WIDTH / 240, seed, num_classes=19).annotation
        assert (said[label == 255] == 255).all()
        known += (label != 255).sum()
        drawn += (said != 255).sum()
        right += (said == label)[said != 255].sum()
        poles[0] += ((said == 5) & (label == 5)).sum()
        poles[1] += (label == 5).sum()
    assert 0.55 < drawn / known < 0.66
    assert right / drawn > 0.98
    assert poles[0] < 0.2 * poles[1]


@pytest.mark.skipif("MEDCOARSE_DATA" not in os.environ, reason="MEDCOARSE_DATA is not set to a folder with real data")
def test_coverage_of_real_street_scenes():
    table = np.array(class_table(list(CLASSES.values())), np.uint8)
    files = sorted((Path(os.environ["MEDCOARSE_DATA"]) / "street_scenes/gtFine/train").glob("*/*_labelIds.png"))[::12]
    assert len(files) == 10
    shares = []
    for seed, file in enumerate(files):
        label = table[np.array(Image.open(file))]
        spacing = CITYSCAPES_WIDTH / label.shape[1]
        said = draw(PROFILES["cityscapes_positive"], label, None, spacing, seed, num_classes=19).annotation
        shares.append((said != 255).sum() / (label != 255).sum())
    assert 0.60 < np.mean(shares) < 0.66


def test_a_negative_drawing_rules_out_what_is_not_there():
    table = np.array(class_table(list(CLASSES.values())), np.uint8)
    label = table[street_scene(1, (90, 120)).label]
    said = draw(PROFILES["cityscapes_negative"], label, None, CITYSCAPES_WIDTH / 120, 0, num_classes=19).annotation
    drawn = (said != 255) & (label != 255)
    assert drawn.mean() > 0.3
    assert (said == label)[drawn].mean() < 0.01


# --- several scales ----------------------------------------------------------------------------------------------


def test_one_view_is_a_sliding_window():
    torch.manual_seed(0)
    network, picture = torch.nn.Conv2d(3, 4, 3, padding=1), torch.rand(1, 3, 20, 12)
    expected = SlidingWindowInferer([8, 8], 1, 0.25, mode="gaussian")(picture, network).softmax(1)
    assert torch.equal(MultiScaleInferer([8, 8])(picture, network), expected)


def test_views_are_put_back_where_they_belong():
    """A network that copies colours: the views of a picture that hardly changes are the picture."""
    row, column = torch.linspace(-1, 1, 64)[:, None], torch.linspace(-1, 1, 48)
    picture = torch.stack([row + 0 * column, 0 * row + column, 0.5 * row * column])[None]
    inferer = MultiScaleInferer([32, 32], scales=[0.5, 1.0, 2.0], flip=True)
    views = list(inferer.views(picture, lambda window: 1 * window))
    assert len(views) == inferer.num_views == 6
    for view in views:
        assert view.shape == picture.shape
        assert (view - picture)[..., 6:-6, 6:-6].abs().max() < 0.05
    mean = inferer(picture, lambda window: 1 * window)
    assert torch.allclose(mean, torch.stack([view.softmax(1) for view in views]).mean(0), atol=1e-6)


def test_what_is_too_fine_for_a_scale_is_smoothed_away():
    """One column in four is bright: at a quarter of the size all have a quarter of the light, on average and each."""
    seen = []

    def network(window):
        seen.append(window.clone())  # the inferer weighs what it gets back in place
        return window

    stripes = (torch.arange(64) % 4 == 0).float().expand(1, 3, 64, 64)
    MultiScaleInferer([16, 16], scales=[0.25])(stripes, network)
    assert (seen[0][..., 2:-2] - 0.25).abs().max() < 0.1


def test_the_mean_over_mirrored_views_is_mirrored_with_the_picture():
    torch.manual_seed(0)
    network, picture = torch.nn.Conv2d(3, 4, 3, padding=1), torch.rand(2, 3, 16, 12)
    inferer = MultiScaleInferer([16, 16], flip=True)
    assert torch.allclose(inferer(picture.flip(2), network), inferer(picture, network).flip(2), atol=1e-6)


def test_windows_have_the_size_that_is_asked_for():
    seen = []

    def network(window):
        seen.append(tuple(window.shape))
        return F.pad(window, (0, 0, 0, 0, 0, 1))

    MultiScaleInferer([32, 16], longest_side=64, scales=[1.0, 2.0])(torch.rand(1, 3, 512, 256), network)
    assert set(seen) == {(1, 3, 32, 16)}


@pytest.mark.parametrize("scales", [[], [1.0, 0.0]])
def test_no_scale(scales):
    with pytest.raises(ValueError, match=r"one or more numbers above 0, got \["):
        MultiScaleInferer([8, 8], scales=scales)


# --- many classes cost L, not L * L ------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.element_size())
        return result


def largest_in_a_step(structure: str, negative: bool) -> tuple[int, int]:
    """Numbers in the largest tensor, and the largest bytes that NumPy holds, in a coupled step of the bundle."""
    _coupled_step(structure, negative, (32, 32))()  # compiles what is to be compiled, which holds memory of its own
    step = _coupled_step(structure, negative, GRID)
    tracemalloc.start()
    with LargestTensor() as largest:
        step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return largest.numel, peak


def _coupled_step(structure: str, negative: bool, size: tuple[int, int]) -> Callable[[], None]:
    parser = ConfigParser()
    parser.read_config(Path(__file__).parents[2] / "bundles" / "cityscapes" / "configs" / "train.json")
    parser["num_classes"], parser["annotator_def#structure"] = 19, structure
    parser["annotator_def#num_positive"], parser["annotator_def#num_negative"] = 1, int(negative)
    network, annotator, loss = (parser.get_parsed_content(key) for key in ("network_def", "annotator_def", "loss"))
    model, image = CoupledModel(network, annotator).train(), torch.rand(1, 3, *size)
    drawing = torch.randint(0, 19, (1, 1, *size), dtype=torch.uint8)
    target = Annotations(drawing, (drawing + 1) % 19 if negative else None, image=image)
    return lambda: loss(model(image), target).backward()


GRID = (192, 256)


@pytest.mark.parametrize("negative", [False, True])
def test_structured_matrices_never_make_a_map_of_l_times_l(negative):
    pixels = GRID[0] * GRID[1]
    numel, held = largest_in_a_step("low_rank", negative)
    assert 19 * pixels <= numel < 2 * 19 * pixels < 19 * 19 * pixels
    assert held < 4 * 19 * 19 * pixels, "less than one such map in single precision"


def test_the_count_would_find_such_a_map():
    with LargestTensor() as largest:
        LowRankConfusion(torch.zeros(1, 1, 19, 64, 64), torch.zeros(1, 1, 1, 19, 64, 64)).dense()
    assert largest.numel >= 19 * 19 * 64 * 64
