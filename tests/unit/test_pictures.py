"""Pictures: the colours that mean something, and maps that do not fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from medcoarse import metrics, pictures
from medcoarse.pictures import FALSE_ALARM, HIT, LEFT_OUT, MISSED, MIXED_UP, NEGATIVE, POSITIVE, REST
from tests.cases import colours, disc


class TestPicture:
    def test_bytes_and_unit_floats_are_shown_as_they_are(self) -> None:
        photograph = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
        assert np.array_equal(pictures.picture(photograph), photograph)
        assert np.array_equal(pictures.picture(photograph.transpose(2, 0, 1)), photograph)
        assert np.array_equal(pictures.picture(torch.from_numpy(photograph / 255.0)), photograph)

    def test_standardized_inputs_are_stretched_and_broken_values_survive(self) -> None:
        image = np.random.default_rng(1).normal(size=(1, 40, 40)) * 7
        image[0, 0, 0] = np.nan
        shown = pictures.picture(image)
        assert shown.min() == 0
        assert shown.max() == 255
        assert 100 < shown.mean() < 156
        assert len(np.unique(shown)) > 200  # the whole range is used
        assert (shown[..., 0] == shown[..., 1]).all()

    @pytest.mark.parametrize("value", [0, 0.5, -3.0, 1000])
    def test_a_constant_image_is_no_error(self, value: float) -> None:
        assert pictures.picture(np.full((5, 5), value)).shape == (5, 5, 3)

    def test_a_volume_shows_its_middle_or_the_plane_that_is_asked_for(self) -> None:
        volume = np.zeros((1, 4, 5, 7), np.uint8)
        volume[..., 3], volume[..., 6] = 50, 80
        assert pictures.picture(volume).shape == (4, 5, 3)
        assert colours(pictures.picture(volume)) == {(50, 50, 50)}
        assert colours(pictures.picture(volume, plane=6)) == {(80, 80, 80)}

    def test_extra_channels_are_left_out(self) -> None:
        assert colours(pictures.picture(np.stack([np.full((6, 6), 9), np.full((6, 6), 200)]).astype(np.uint8))) == {
            (9,) * 3
        }

    def test_a_batch_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"image must be \(H, W\).*got \(1, 1, 4, 4, 4\); give one case"):
            pictures.picture(np.zeros((1, 1, 4, 4, 4)))


class TestErrorMap:
    def test_every_kind_has_its_colour(self) -> None:
        pred = np.array([[1, 0, 1, 0, 1, 1]])
        label = np.array([[1, 0, 0, 1, 255, 1]])
        mask = np.array([[1, 1, 1, 1, 1, 0]])
        expected = [HIT, REST, FALSE_ALARM, MISSED, LEFT_OUT, LEFT_OUT]
        assert pictures.error_map(pred, label, mask)[0].tolist() == [list(colour) for colour in expected]

    def test_one_class_against_the_rest_and_all_together(self) -> None:
        pred, label = torch.tensor([[[2, 2, 0, 1, 0]]]), torch.tensor([[[2, 1, 2, 0, 0]]])
        assert pictures.error_map(pred, label, class_index=2)[0].tolist() == [
            list(colour) for colour in (HIT, FALSE_ALARM, MISSED, REST, REST)
        ]
        assert pictures.error_map(pred, label, class_index=None)[0].tolist() == [
            list(colour) for colour in (HIT, MIXED_UP, MISSED, FALSE_ALARM, REST)
        ]
        assert colours(pictures.error_map(pred, label, class_index=None, background=None)) == {HIT, MIXED_UP}

    def test_counts_of_colours_are_the_counts_of_the_metrics(self) -> None:
        rng = np.random.default_rng(2)
        pred, label, mask = rng.integers(0, 2, (3, 1, 20, 20))
        label[rng.random(label.shape) < 0.2] = 255
        shown = pictures.error_map(pred, label, mask)
        counts = metrics.confusion_counts(
            *(torch.from_numpy(x)[None] for x in (pred, label)), 2, torch.from_numpy(mask)[None]
        )
        found = [[(shown == colour).all(-1).sum() for colour in row] for row in ((REST, MISSED), (FALSE_ALARM, HIT))]
        assert counts[0].tolist() == found

    def test_sizes_must_agree(self) -> None:
        with pytest.raises(ValueError, match=r"pred and label must have the same size, got \(4, 4\) and \(4, 5\)"):
            pictures.error_map(np.zeros((4, 4)), np.zeros((4, 5)))
        with pytest.raises(ValueError, match=r"mask must be \(4, 4\) like the picture, got \(2, 2\)"):
            pictures.error_map(np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((2, 2)))
        with pytest.raises(ValueError, match=r"pred must be \(H, W\) or \(R, H, W\).*one plane of a volume"):
            pictures.error_map(np.zeros((1, 4, 4, 4)), np.zeros((1, 4, 4, 4)))


class TestOverlay:
    def test_undrawn_and_background_are_see_through(self) -> None:
        image = np.full((20, 20), 100, np.uint8)
        blank, background = np.full((20, 20), 255), np.zeros((20, 20))
        for drawing in (blank, background):
            assert colours(pictures.annotation_overlay(image, drawing, drawing)) == {(100, 100, 100)}
        assert colours(pictures.annotation_overlay(image, None, None)) == {(100, 100, 100)}

    @pytest.mark.parametrize(("which", "colour"), [("positive", POSITIVE), ("negative", NEGATIVE)])
    def test_drawings_take_their_colour_where_they_are(self, which: str, colour: tuple[int, ...]) -> None:
        drawn = np.where(disc() == 1, 1, 255)
        shown = pictures.annotation_overlay(np.zeros((24, 30)), **{"positive": None, "negative": None, which: drawn})
        painted = shown.any(-1)
        assert np.array_equal(painted, drawn == 1)
        direction = shown[painted].astype(float) / shown[painted].max(1, keepdims=True)
        assert np.allclose(direction, np.array(colour) / max(colour), atol=0.02)
        assert len(colours(shown[painted])) == 2  # a wash and its outline

    def test_annotators_are_selected(self) -> None:
        both = np.stack([np.full((6, 6), 255), np.ones((6, 6))]).astype(np.uint8)
        image = np.zeros((6, 6))
        assert not pictures.annotation_overlay(image, both, None, annotator=0).any()
        assert pictures.annotation_overlay(image, both, None, annotator=1).any(-1).all()
        with pytest.raises(ValueError, match=r"positive has 2 annotators, so annotator must be in 0 .. 1, got 2"):
            pictures.annotation_overlay(image, both, None, annotator=2)

    def test_more_classes_have_their_own_colours_and_negatives_stripes(self) -> None:
        drawn = np.full((60, 60), 255)
        drawn[5:25], drawn[35:55] = 1, 2
        image = np.zeros((60, 60))
        solid = pictures.annotation_overlay(image, drawn, None, num_classes=3)
        striped = pictures.annotation_overlay(image, None, drawn, num_classes=3)
        one, two = (pictures.class_colours(3)[k] * 0.6 for k in (1, 2))
        assert np.allclose(solid[15, 30], one, atol=1)
        assert np.allclose(solid[45, 30], two, atol=1)
        inside = striped[10:20, 10:50]
        assert 0.4 < inside.any(-1).mean() < 0.6

    def test_class_zero_can_be_a_thing(self) -> None:
        drawn = np.zeros((10, 10))
        assert pictures.annotation_overlay(np.zeros((10, 10)), drawn, None, num_classes=3, background=None).any()

    def test_bad_maps_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"negative must be \(6, 6\) like the picture, got \(6, 7\)"):
            pictures.annotation_overlay(np.zeros((6, 6)), None, np.zeros((6, 7)))
        with pytest.raises(ValueError, match=r"positive must hold classes 0 .. 1 or 255, got values from 3 to 3"):
            pictures.annotation_overlay(np.zeros((6, 6)), np.full((6, 6), 3), None)


class TestColours:
    def test_two_classes_are_black_and_white_and_unknown_is_grey(self) -> None:
        shown = pictures.label_picture(torch.tensor([[[0, 1, 255]]]))
        assert shown[0].tolist() == [[0, 0, 0], [255, 255, 255], list(LEFT_OUT)]

    @pytest.mark.parametrize("background", [0, None])
    @pytest.mark.parametrize("num_classes", [3, 11, 19, 34])
    def test_classes_can_be_told_apart(self, num_classes: int, background: int | None) -> None:
        table = pictures.class_colours(num_classes, background).astype(int)
        for a, b in itertools.combinations(table, 2):
            assert np.abs(a - b).sum() >= 40
        assert (tuple(table[0]) == REST) == (background == 0)

    def test_a_class_without_a_colour_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"label must hold classes 0 .. 1 or 255, got values from 0 to 7; check"):
            pictures.label_picture(np.array([[0, 7]]))


def test_background_is_seen_where_it_ends_in_what_nobody_drew() -> None:
    """A closed line, or all beyond one; dense drawings of background are see-through."""
    ring = np.full((7, 7), 255)
    ring[1:6, 1:6] = 0
    ring[2:5, 2:5] = 255
    white = np.ones((7, 7))
    line = pictures.annotation_overlay(white, ring, None)[..., 0] < 100
    assert np.array_equal(line, ring == 0)
    beyond = np.where(np.abs(np.mgrid[-3:4, -3:4]).max(0) > 1, 0, 255)
    line = pictures.annotation_overlay(white, beyond, None)[..., 0] < 100
    assert line.sum() == 12, "one pixel wide, and no corner"
    assert (pictures.annotation_overlay(white, np.zeros((7, 7), int), None) == 255).all()
