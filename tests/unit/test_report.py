"""Pages: the parts that are there, text that fits, and drawing without a screen or global state."""

from __future__ import annotations

import ast
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from medcoarse import metrics, report
from medcoarse.pictures import FALSE_ALARM, HIT, MISSED, POSITIVE, REST
from medcoarse.report import Case
from tests.cases import colours, disc

SWAP = np.array([[0.0, 1.0], [1.0, 0.0]])
STREET = ["road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"]


def rendered(figure: Figure) -> npt.NDArray[np.uint8]:
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def titles(figure: Figure) -> list[str]:
    return [ax.get_title("left") or ax.get_title() for ax in figure.axes]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def full_page(**changes: object) -> Figure:
    truth = disc()
    parts: dict[str, object] = {
        "image": np.random.default_rng(0).random((1, 24, 30)),
        "positive": disc(shift=2),
        "negative": 1 - disc(shift=1),
        "label": truth,
        "prediction": disc(shift=3),
        "confusion_positive": np.array([[0.9, 0.2], [0.1, 0.8]]),
        "confusion_negative": np.array([[0.7, 0.2], [0.3, 0.8]]),
        "transition": SWAP,
        "class_names": ["background", "vessel"],
        "title": "A case",
        "indexing": "ij",
    }
    return report.validation_figure(**(parts | changes))  # type: ignore[arg-type]


def assert_legible(figure: Figure) -> None:
    """No text overlaps another or leaves the page."""
    rendered(figure)
    boxes = []
    for text in figure.findobj(lambda artist: isinstance(artist, Text) and bool(artist.get_text())):
        if text.get_visible():
            boxes.append((text.get_text(), text.get_window_extent()))
    width, height = figure.canvas.get_width_height()
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for (a, first), (b, second) in itertools.combinations(boxes, 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), (a, b)


@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize(
    "names", [["background", "vessel"], ["background", "a long name", "tumour core", "oedema"], STREET]
)
def test_matrices_of_many_annotators_can_be_read(number: int, names: list[str]) -> None:
    """In lines of whole groups: what was estimated and what was counted of one annotator stay side by side."""
    size = len(names)
    values = np.eye(size) * 0.9 + 0.1 / size
    heading = "Positive annotator {}   RMSE 0.022, pixel by pixel 0.013"
    groups = [
        (heading.format(r), [report.Matrix("estimated A", values), report.Matrix("counted", values)])
        for r in range(1, number + 1)
    ]
    drawn = np.zeros((12, 12), np.int64)
    maps = report.AnnotatorMaps(
        "positive", drawn, np.full((size, size, 12, 12), 1 / size), np.full((size, 12, 12), 0.5)
    )
    case = report.ConfusionCase("one", np.eye(12)[None], drawn[None], [maps])
    figure = report.confusion_sheet([case], groups, names, "Annotators")
    if names is not STREET:  # of so many classes the maps above have titles as narrow as they are
        assert_legible(figure)
    panels = [ax for ax in figure.axes if ax.get_title() in ("estimated A", "counted")]
    assert len(panels) == 2 * number
    for first, second in itertools.pairwise(panels):
        if first.get_title() == "estimated A":
            assert first.get_position().y0 == pytest.approx(second.get_position().y0)
    sides = [ax.get_position().width * figure.get_size_inches()[0] for ax in panels]
    assert min(sides) > 1.2


class TestMatrixPanel:
    def test_numbers_and_axes(self) -> None:
        figure = report.new_figure(3, 3)
        report.matrix_panel(figure.add_subplot(), np.array([[0.875, np.nan], [0.125, np.nan]]), ["a", "b"], title="T")
        ax = figure.axes[0]
        assert [text.get_text() for text in ax.texts] == ["0.88", "–", "0.12", "–"]
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("true", "drawn", "T")

    def test_rows_run_down_and_columns_to_the_right(self) -> None:
        """The dark cell of p(drawn 1 | true 0) = 1 is at the lower left."""
        figure = report.new_figure(2, 2)
        report.matrix_panel(figure.add_axes((0, 0, 1, 1)), np.array([[0.0, 0.0], [1.0, 0.0]]), ["a", "b"])
        shown = rendered(figure).astype(int).sum(-1)
        assert shown[150, 20] < 200
        assert min(shown[20, 20], shown[20, 150], shown[150, 180]) > 700

    def test_many_classes_are_not_printed(self) -> None:
        figure = report.new_figure(3, 3)
        report.matrix_panel(figure.add_subplot(), np.eye(19), [f"c{k}" for k in range(19)])
        assert not figure.axes[0].texts

    def test_a_wrong_size_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"matrix must be \(2, 2\) for \['a', 'b'\], got \(2, 3\)"):
            report.matrix_panel(report.new_figure(1, 1).add_subplot(), np.ones((2, 3)), ["a", "b"])


class TestValidationFigure:
    def test_all_parts_are_there_in_order(self) -> None:
        figure = full_page()
        iou = metrics.iou(
            metrics.confusion_counts(*(torch.from_numpy(x)[None, None] for x in (disc(shift=3), disc())), 2)
        )
        assert titles(figure) == [
            *("Image", "Positive drawing", "Negative drawing", "Truth", "Prediction"),
            f"Errors: vessel   IoU {iou[0, 1]:.3f}   Dice {2 * iou[0, 1] / (1 + iou[0, 1]):.3f}",
            *("estimated A", "counted", "estimated A", "transition M", "estimated M A", "counted"),
        ]
        assert "“this is vessel”" in texts(figure)
        assert "“this is not vessel”" in texts(figure)
        assert "A case" in texts(figure)

    def test_the_rendered_page_holds_the_colours_of_errors_and_drawings(self) -> None:
        page = rendered(full_page(image=np.zeros((24, 30))))
        assert page.shape[1] == 1600
        found = colours(page)
        assert {HIT, REST, FALSE_ALARM, MISSED} <= found
        wash = np.round(0.5 * np.array(POSITIVE)).astype(int)
        assert any(np.abs(np.array(colour) - wash).max() <= 1 for colour in found)

    @pytest.mark.parametrize(
        ("without", "missing"),
        [
            ("positive", ["Positive drawing", "counted"]),
            ("negative", ["Negative drawing", "counted"]),
            ("label", ["Truth", "Errors: vessel", "counted", "counted"]),
            ("prediction", ["Prediction", "Errors: vessel"]),
            ("transition", ["transition M", "estimated M A"]),
            ("confusion_positive", ["estimated A"]),
            ("confusion_negative", ["estimated A", "estimated M A"]),
        ],
    )
    def test_any_part_may_be_missing(self, without: str, missing: list[str]) -> None:
        there = [title.split("   ")[0] for title in titles(full_page(**{without: None}))]
        everything = [title.split("   ")[0] for title in titles(full_page())]
        assert sorted(there + missing) == sorted(everything)

    def test_an_image_alone_is_a_page(self) -> None:
        figure = report.validation_figure(np.zeros((8, 8)))
        assert titles(figure) == ["Image"]
        assert rendered(figure).shape[1] == 1600

    def test_counted_matrices_stand_beside_the_estimates(self) -> None:
        figure = full_page()
        panels = {i: ax for i, ax in enumerate(figure.axes) if ax.get_title() in ("counted", "estimated M A")}
        shown = [[float(text.get_text()) for text in ax.texts] for ax in panels.values()]
        label = torch.from_numpy(disc())[None, None]
        for drawing, numbers in ((disc(shift=2), shown[0]), (1 - disc(shift=1), shown[2])):
            counted = metrics.empirical_confusion(torch.from_numpy(drawing)[None, None], label, 2)
            assert numbers == pytest.approx(counted.flatten().tolist(), abs=0.006)
        assert shown[1] == pytest.approx([0.3, 0.8, 0.7, 0.2])  # the swap of the rows of A

    def test_error_in_the_heading_is_that_of_the_metrics(self) -> None:
        label, drawn = (torch.from_numpy(x)[None, None] for x in (disc(), disc(shift=2)))
        counted = metrics.empirical_confusion(drawn, label, 2)[0, 0]
        error = metrics.confusion_matrix_error(torch.tensor([[0.9, 0.2], [0.1, 0.8]]), counted)
        assert f"Positive annotator   RMSE {error:.3f}" in texts(full_page())

    def test_a_matrix_at_every_pixel_is_averaged_where_its_class_is(self) -> None:
        said_1 = np.where(disc() == 1, 0.75, 0.25)
        cm = np.stack([np.stack([1 - said_1] * 2), np.stack([said_1] * 2)])
        figure = full_page(confusion_positive=torch.from_numpy(cm))
        numbers = [text.get_text() for text in figure.axes[6].texts]
        assert numbers == ["0.75", "0.25", "0.25", "0.75"]

    def test_a_volume_shows_its_fullest_plane_and_scores_all(self) -> None:
        label = np.zeros((1, 20, 24, 6), np.int64)
        label[0, 5:9, 5:9, 1] = 1
        label[0, 4:16, 4:20, 4] = 1
        prediction = label.copy()
        prediction[..., 1] = 0
        image = np.zeros((1, 20, 24, 6))
        image[..., 4] = 1
        figure = report.validation_figure(image, label=label, prediction=prediction, indexing="ij", spacing=(1, 1, 3))
        image_ax, truth_ax = figure.axes[0], figure.axes[1]
        assert np.asarray(image_ax.images[0].get_array()).min() == 255
        assert np.array_equal(np.asarray(truth_ax.images[0].get_array())[..., 0] > 0, label[0, ..., 4] == 1)
        assert titles(figure)[3].startswith(f"Errors: foreground   IoU {192 / 208:.3f}")

    def test_of_a_volume_without_truth_the_plane_that_was_drawn_on_is_shown(self) -> None:
        prediction, drawn = np.zeros((1, 8, 8, 5), np.int64), np.full((1, 8, 8, 5), 255)
        prediction[0, 2:7, 2:7, 3] = 1
        drawn[0, 4, 4, 1] = 1
        image = np.zeros((1, 8, 8, 5))
        image[..., 1] = 1
        figure = report.validation_figure(image, positive=drawn, prediction=prediction, indexing="ij")
        assert np.asarray(figure.axes[0].images[0].get_array()).min() == 255

    def test_xy_turns_all_pictures_alike(self) -> None:
        label = np.zeros((10, 16), np.int64)
        label[2, 12] = 1
        image = np.random.default_rng(3).random((3, 10, 16))
        ij = report.validation_figure(image, label=label, indexing="ij", spacing=(2, 1))
        xy = report.validation_figure(image, label=label, spacing=(2, 1))
        for a, b in zip(ij.axes, xy.axes, strict=True):
            assert np.array_equal(a.images[0].get_array(), np.asarray(b.images[0].get_array()).swapaxes(0, 1))
            assert (a.get_aspect(), b.get_aspect()) == (2, 0.5)

    @pytest.mark.parametrize("names", [["background", "vessel"], ["background", "a long name", "tumour core"], STREET])
    def test_no_text_overlaps_another_or_leaves_the_page(self, names: list[str]) -> None:
        size = len(names)
        maps = {
            name: np.arange(24 * 30).reshape(24, 30) % size for name in ("positive", "negative", "label", "prediction")
        }
        cm = np.eye(size) * 0.9 + 0.1 / size
        transition = (1 - np.eye(size)) / (size - 1)
        for part in ({}, {"negative": None, "confusion_negative": None, "transition": None}):
            arguments = {
                "confusion_positive": cm,
                "confusion_negative": cm,
                "transition": transition,
                "class_names": names,
            }
            assert_legible(full_page(**(maps | arguments | part)))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"label": np.zeros((24, 31))}, r"label must be \(24, 30\) like the picture, got \(24, 31\)"),
            ({"prediction": np.full((24, 30), 4)}, "prediction must hold classes 0 .. 1 or 255, got values from 4"),
            ({"class_index": 2}, "class_index must be in 0 .. 1 or None, got 2"),
            ({"background": -1}, "background must be in 0 .. 1 or None, got -1"),
            ({"indexing": "yx"}, "indexing must be 'xy' or 'ij', got 'yx'"),
            ({"class_names": ["one"]}, "class_names must name at least 2 classes"),
            ({"transition": np.eye(3)}, r"transition must be \(L, L, ...\) for the classes .*, got \(3, 3\)"),
            ({"confusion_positive": np.ones((3, 3, 24, 30))}, r"confusion_positive must be \(L, L, ...\)"),
        ],
    )
    def test_bad_input_is_named(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            full_page(**changes)


class TestPredictionSheet:
    def test_a_row_for_each_case_and_one_legend(self) -> None:
        cases = [Case(f"case {i}", np.zeros((1, 24, 30)), disc(), disc(shift=i)) for i in range(3)]
        figure = report.prediction_sheet(cases, ["background", "vessel"], title="Test", indexing="ij")
        assert titles(figure)[::4] == ["case 0", "case 1", "case 2"]
        assert titles(figure)[3] == "Errors: vessel   IoU 1.000   Dice 1.000"
        assert texts(figure).count("false alarm") == 1
        assert {FALSE_ALARM, MISSED, HIT} <= colours(rendered(figure))

    def test_the_legend_names_what_occurs_in_any_row(self) -> None:
        outside = np.pad(np.ones((22, 28)), 1)
        cases = [
            Case("a", np.zeros((24, 30)), disc(), disc(), mask=outside),
            Case("b", np.zeros((24, 30)), disc(), disc()),
        ]
        assert "left out" in texts(report.prediction_sheet(cases))

    def test_an_empty_truth_has_no_score_and_is_no_error(self) -> None:
        figure = report.prediction_sheet([Case("empty", np.zeros((24, 30)), disc() * 0, disc())])
        assert titles(figure)[3] == "Errors: foreground   IoU –   Dice –"

    def test_no_case_is_named(self) -> None:
        with pytest.raises(ValueError, match="needs at least one case"):
            report.prediction_sheet([])


class TestSaving:
    def test_png_of_the_whole_figure_and_nothing_else(self, tmp_path: Path) -> None:
        path = report.save_figure(full_page(), tmp_path / "new" / "page.png")
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width == 1600
        assert [file.name for file in path.parent.iterdir()] == ["page.png"]

    def test_the_same_figure_gives_the_same_bytes(self, tmp_path: Path) -> None:
        first, second = (report.save_figure(full_page(), tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
        assert first == second

    def test_a_failure_leaves_the_old_picture(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "page.png"
        path.write_bytes(b"old")
        figure = report.new_figure(1, 1)

        def fail(file: object, **_: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise OSError("disk full")

        monkeypatch.setattr(figure, "savefig", fail)
        with pytest.raises(OSError, match="disk full"):
            report.save_figure(figure, path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_only_png(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"written as PNG, got 'page\.jpg'; end the name in \.png"):
            report.save_figure(report.new_figure(1, 1), tmp_path / "page.jpg")


class TestNoGlobalState:
    def test_pyplot_is_neither_imported_nor_fed(self) -> None:
        rendered(full_page())
        assert not Gcf.figs
        tree = ast.parse(Path(str(report.__file__)).read_text())
        imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name for name in imported if "pyplot" in name}

    def test_threads_draw_what_one_thread_draws(self) -> None:
        def draw(shift: int) -> bytes:
            return rendered(full_page(prediction=disc(shift=shift))).tobytes()

        alone = [draw(shift) for shift in range(2)]
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(draw, range(2))) == alone


@pytest.mark.skipif("MEDCOARSE_DATA" not in os.environ, reason="set MEDCOARSE_DATA to the folder that holds LES-AV/")
def test_a_page_of_a_real_photograph_is_small_enough_to_send(tmp_path: Path) -> None:
    root = Path(os.environ["MEDCOARSE_DATA"]) / "LES-AV"
    image = np.asarray(Image.open(root / "images/111.png").convert("RGB"))
    label = (np.asarray(Image.open(root / "vessel-segmentations/111.png").convert("L")) > 0).astype(np.uint8)
    mask = np.asarray(Image.open(root / "masks/111_mask.gif").convert("L")) > 0
    figure = report.validation_figure(
        image, label, 1 - label, label, np.roll(label, 3), np.eye(2), np.eye(2), SWAP, mask=mask, indexing="ij"
    )
    assert report.save_figure(figure, tmp_path / "page.png").stat().st_size < 1_500_000
