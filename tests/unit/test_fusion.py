"""Fusion of several annotators against the slow reference, against SimpleITK, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcoarse.confusion import UNLABELED
from medcoarse.fusion import _votes
from medcoarse.fusion.spatial_staple import spatial_staple
from medcoarse.fusion.staple import staple
from medcoarse.fusion.voting import hard_label, majority_vote, mean_label, vote_counts
from medcoarse.metrics import joint_table, precision, sensitivity, specificity
from tests.cases import disc
from tests.reference import fusion_reference as reference


def annotators(
    seed: int, size: tuple[int, ...], num_classes: int, number: int = 3, missing: float = 0.2, num_images: int = 1
) -> torch.Tensor:
    """Noisy copies of one truth, ``(B, number, *size)``, each wrong more often than the one before."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, (num_images, 1, *size))
    wrong = rng.random((num_images, number, *size)) < np.linspace(0.1, 0.4, number).reshape(-1, *[1] * len(size))
    said = np.where(wrong, rng.integers(0, num_classes, wrong.shape), truth)
    said[rng.random(said.shape) < missing] = UNLABELED
    return torch.from_numpy(said.astype(np.uint8))


def with_silence(annotations: torch.Tensor) -> torch.Tensor:
    """The same and one annotator who said nothing at all."""
    return torch.cat([annotations, torch.full_like(annotations[:, :1], UNLABELED)], 1)


def flat(annotations: torch.Tensor) -> list[list[int]]:
    return annotations[0].flatten(1).tolist()


def close(actual: torch.Tensor, expected: object, atol: float = 1e-6) -> None:
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), atol=atol, rtol=0)


CASES = [((6, 5), 2, 3), ((6, 5), 4, 5), ((3, 4, 5), 3, 2), ((1, 1), 2, 3), ((1, 1, 1), 3, 1), ((9, 9), 2, 8)]
METHODS = [mean_label, majority_vote, vote_counts, staple, spatial_staple]


class TestVoting:
    @pytest.mark.parametrize(("size", "num_classes", "number"), CASES)
    def test_mean_equals_the_reference(self, size, num_classes, number):
        said = annotators(0, size, num_classes, number, missing=0.4)
        mean = mean_label(said, num_classes)
        assert mean.dtype == torch.float32
        assert mean.shape == (1, num_classes, *size)
        close(mean[0].flatten(1).T, reference.shares(flat(said), num_classes))

    @pytest.mark.parametrize("ties", ["unlabeled", "lowest"])
    @pytest.mark.parametrize(("size", "num_classes", "number"), CASES)
    def test_majority_equals_the_reference(self, size, num_classes, number, ties):
        said = annotators(1, size, num_classes, number, missing=0.4)
        label = majority_vote(said, num_classes, ties)
        assert label.dtype == torch.uint8
        assert label.shape == (1, 1, *size)
        assert label.flatten().tolist() == reference.majority(flat(said), num_classes, ties)

    def test_random_ties_are_drawn_among_the_best_alike_and_from_the_generator(self):
        said = torch.tensor([0, 2, 2, 3, 3]).view(1, 5, 1).expand(1, 5, 3000)
        first, again = (majority_vote(said, 4, "random", torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, again)
        shares = [(first == k).float().mean().item() for k in range(4)]
        assert shares[:2] == [0, 0]
        assert shares[2] == pytest.approx(0.5, abs=0.04)
        assert shares[2] + shares[3] == 1

    def test_random_ties_leave_the_rest_alone(self):
        said = annotators(2, (8, 8), 3, 3)
        clear = majority_vote(said, 3) != UNLABELED
        drawn = majority_vote(said, 3, "random", torch.Generator().manual_seed(0))
        assert torch.equal(drawn[clear], majority_vote(said, 3)[clear])
        assert torch.equal(drawn == UNLABELED, (said == UNLABELED).all(1, keepdim=True))

    def test_without_ties_there_is_nothing_to_draw(self):
        assert majority_vote(torch.ones(1, 2, 3), 2, "random").tolist() == [[[1, 1, 1]]]

    def test_hundreds_of_annotators_are_counted(self):
        assert vote_counts(torch.ones(1, 300, 2, dtype=torch.uint8), 2)[0, 1].tolist() == [300, 300]
        assert vote_counts(torch.ones(1, 255, 2, dtype=torch.uint8), 2)[0, 1].tolist() == [255, 255]

    def test_unknown_rule_for_ties(self):
        with pytest.raises(ValueError, match="ties must be one of 'unlabeled', 'lowest', 'random', got 'highest'"):
            hard_label(torch.zeros(1, 2, 3), "highest")


@pytest.mark.parametrize("method", METHODS)
class TestInput:
    @pytest.mark.parametrize(
        ("annotations", "num_classes", "message"),
        [
            (torch.zeros(4, 4), 2, r"must be \(B, R, \*S\), none of them 0, got \(4, 4\); stack"),
            (torch.zeros(1, 0, 4, 4), 2, r"none of them 0, got \(1, 0, 4, 4\)"),
            (torch.zeros(0, 1, 4, 4), 2, r"none of them 0, got \(0, 1, 4, 4\)"),
            (torch.full((1, 1, 4, 4), 2, dtype=torch.uint8), 2, "hold classes 0 .. 1, or 255 .* got 2; check num"),
            (torch.full((1, 1, 4, 4), 254, dtype=torch.uint8), 253, "hold classes 0 .. 252, .* got 254"),
            (torch.full((1, 1, 4, 4), -1), 2, "got -1; check num_classes"),
            (torch.full((1, 1, 4, 4), 256), 2, "got 256"),
            (torch.full((1, 1, 4, 4), math.nan), 2, "got nan"),
            (torch.full((1, 1, 4, 4), 0.5), 2, "whole class numbers, got fractions; resample by nearest"),
            (torch.zeros(1, 1, 4, 4), 1, "num_classes must be between 2 and 254 .* got 1"),
            (torch.zeros(1, 1, 4, 4), 255, "num_classes must be between 2 and 254 .* got 255"),
        ],
    )
    def test_bad_annotations_are_named(self, method, annotations, num_classes, message):
        with pytest.raises(ValueError, match=message):
            method(annotations, num_classes)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
    def test_any_dtype_and_memory_layout_is_taken(self, method, dtype):
        said = annotators(3, (6, 5), 2)
        expected = result_of(method(said, 2))
        other = MetaTensor(said.to(dtype).transpose(1, 3).contiguous().transpose(1, 3))
        result = result_of(method(other, 2))
        assert type(result) is torch.Tensor
        assert torch.equal(result, expected)

    def test_arrays_are_taken(self, method):
        said = annotators(3, (6, 5), 2)
        wanted = result_of(method(said, 2))
        for dtype in ("uint8", "uint16", ">i2", "uint32", "<f4", ">f8"):
            array = said.numpy().astype(dtype)
            for one in (array, np.ascontiguousarray(array[..., ::-1])[..., ::-1], np.asfortranarray(array)):
                assert torch.equal(result_of(method(one, 2)), wanted)

    def test_annotators_on_the_axis_of_the_batch_are_suspected(self, method):
        said = annotators(3, (6, 5), 2)[:1].movedim(0, 1)
        with pytest.warns(UserWarning, match="are of one annotator, so there is nothing to fuse"):
            method(said, 2)

    def test_a_missing_axis_of_the_batch_is_suspected(self, method):
        said = torch.randint(0, 2, (3, 70, 2, 2))
        with pytest.warns(UserWarning, match=r"taken as \(B, R, \*S\), of 70 annotators; .* pass annotations\[None\]"):
            method(said, 2)

    def test_bool_maps_are_taken(self, method):
        said = annotators(3, (6, 5), 2, missing=0)
        assert torch.equal(result_of(method(said.bool(), 2)), result_of(method(said, 2)))

    def test_input_is_left_as_it_was(self, method):
        said = annotators(3, (6, 5), 2)
        before = said.clone()
        method(said, 2)
        assert torch.equal(said, before)


def result_of(result):
    return result if isinstance(result, torch.Tensor) else result.probs


def decoded(patterns: _votes.Patterns, shape: tuple[int, ...]) -> torch.Tensor:
    votes = patterns.votes[patterns.places.long()]  # (B * voxels, R)
    maps = votes.view(shape[0], -1, shape[1]).movedim(2, 1).view(shape)
    return torch.where(maps == 0, UNLABELED, maps - 1).to(torch.uint8)


class TestPatterns:
    @pytest.mark.parametrize("few", [2**22, 100, 9, 2, 1])  # the less, the more often codes are numbered anew
    @pytest.mark.parametrize("number", [1, 4, 7])
    def test_patterns_hold_what_was_said(self, monkeypatch, few, number):
        monkeypatch.setattr(_votes, "_FEW", few)
        monkeypatch.setattr(_votes, "_PIECE", 7)
        said = annotators(4, (5, 6), 3, number, num_images=2)
        patterns = _votes.vote_patterns(said, 3)
        assert torch.equal(decoded(patterns, tuple(said.shape)), said)
        assert torch.equal(torch.bincount(patterns.places), patterns.counts)
        assert len(patterns.votes.unique(dim=0)) == len(patterns.votes)

    def test_more_annotators_than_digits_of_a_number(self):
        said = annotators(5, (7, 7), 19, number=40)  # 20 ** 40 codes
        patterns = _votes.vote_patterns(said, 19)
        assert torch.equal(decoded(patterns, tuple(said.shape)), said)

    def test_result_does_not_depend_on_how_patterns_are_counted(self, monkeypatch):
        said = annotators(5, (9, 9), 3, 6)
        expected = staple(said, 3)
        monkeypatch.setattr(_votes, "_FEW", 50)
        result = staple(said, 3)
        assert torch.equal(result.probs, expected.probs)
        assert torch.equal(result.cm, expected.cm)


class TestStaple:
    @pytest.mark.parametrize("disagreement_only", [False, True])
    @pytest.mark.parametrize("iterations", [1, 2, 12])
    @pytest.mark.parametrize(("size", "num_classes", "number"), [c for c in CASES if c[2] > 1 and len(c[0]) * c[2] > 4])
    def test_equals_the_reference(self, size, num_classes, number, iterations, disagreement_only):
        said = annotators(6, size, num_classes, number)
        if disagreement_only and math.prod(size) == 1:
            said = torch.arange(number).view(1, -1, *size) % num_classes
        elif math.prod(size) == 1:
            said = torch.ones(1, number, *size, dtype=torch.uint8)
        result = staple(
            said, num_classes, disagreement_only=disagreement_only, tol=0, max_iterations=iterations,
            initial_diagonal=0.9,
        )  # fmt: skip
        posterior, matrices, prior = reference.staple(
            flat(said), num_classes, iterations, 0.9, disagreement_only=disagreement_only
        )
        close(result.probs[0].flatten(1).T, posterior)
        known = ~result.cm[0].isnan()
        close(result.cm[0][known], torch.tensor(matrices)[known].tolist())
        close(result.prior[0], prior)
        assert result.iterations.tolist() == [iterations]

    def test_given_prior_is_used(self):
        said = annotators(7, (6, 5), 3)
        posterior, matrices, _ = reference.staple(flat(said), 3, 4, prior=[0.2, 0.1, 0.7])
        result = staple(said, 3, prior=[0.2, 0.1, 0.7], tol=0, max_iterations=4)
        close(result.probs[0].flatten(1).T, posterior)
        close(result.cm[0], matrices)
        close(result.prior[0], [0.2, 0.1, 0.7])

    def test_a_class_that_the_prior_excludes_is_nowhere(self):
        result = staple(annotators(7, (6, 5), 3), 3, prior=[0.5, 0.5, 0.0])
        assert not result.probs[:, 2].any()
        assert result.cm[..., 2].isnan().all()
        assert result.cm[..., :2].isfinite().all()

    @pytest.mark.parametrize(("size", "seed"), [((30, 40), 0), ((12, 14, 16), 1)])
    def test_equals_simpleitk_for_two_classes(self, size, seed):
        sitk = pytest.importorskip("SimpleITK")
        said = annotators(seed, size, 2, 5, missing=0)
        images = [sitk.GetImageFromArray(x) for x in said[0].numpy()]
        method = sitk.STAPLEImageFilter()
        method.SetForegroundValue(1)
        foreground = sitk.GetArrayFromImage(method.Execute(images))
        result = staple(said, 2)
        assert result.converged.all()
        np.testing.assert_allclose(result.probs[0, 1], foreground, atol=1e-4)
        np.testing.assert_allclose(result.cm[0, :, 1, 1], method.GetSensitivity(), atol=1e-4)
        np.testing.assert_allclose(result.cm[0, :, 0, 0], method.GetSpecificity(), atol=1e-4)

    def test_images_of_a_batch_do_not_know_each_other(self):
        said = annotators(8, (6, 5), 3, num_images=3)
        together = staple(said, 3)
        for b in range(3):
            alone = staple(said[b : b + 1], 3)
            for whole, part in zip(together, alone, strict=True):
                assert torch.equal(whole[b : b + 1], part)

    def test_dataset_is_one_large_image(self):
        said = annotators(8, (6, 5), 3, num_images=3)
        pooled = staple(said, 3, scope="dataset")
        large = staple(said.movedim(0, 1).reshape(1, 3, 18, 5), 3)
        assert pooled.cm.shape == (1, 3, 3, 3)
        assert pooled.prior.shape == (1, 3)
        torch.testing.assert_close(pooled.cm, large.cm)
        torch.testing.assert_close(pooled.probs, large.probs.view(3, 3, 6, 5).movedim(0, 1))

    def test_padding_with_unlabeled_changes_nothing(self):
        said = annotators(8, (6, 5), 3)
        padded = torch.nn.functional.pad(said, (0, 4, 2, 0), value=UNLABELED)
        alone, more = staple(said, 3), staple(padded, 3)
        torch.testing.assert_close(more.cm, alone.cm)
        torch.testing.assert_close(more.probs[:, :, 2:, :5], alone.probs)
        assert not more.probs[:, :, :2].any()

    def test_what_everybody_finds_no_longer_decides_with_disagreement_only(self):
        said = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
        truth = torch.from_numpy(disc((40, 40)))
        said[0, 0], said[0, 1], said[0, 2] = truth, truth, truth.roll(2, 0)
        plain, restricted = staple(said, 2), staple(said, 2, disagreement_only=True)
        assert plain.cm[0, 2, 0, 0] > 0.97
        assert restricted.cm[0, 2, 0, 0] < 0.05  # where the three disagree the third one is wrong
        for result in (plain, restricted):
            assert torch.equal(hard_label(result.probs)[0, 0], truth.to(torch.uint8))

    def test_reports_that_it_did_not_converge(self):
        said = annotators(9, (20, 20), 2, num_images=2)
        stopped = staple(said, 2, max_iterations=2)
        assert not stopped.converged.any()
        assert stopped.iterations.tolist() == [2, 2]
        finished = staple(said, 2)
        assert finished.converged.all()
        assert (finished.iterations > 2).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"scope": "batch"}, 'scope must be "image" or "dataset", got \'batch\''),
            ({"initial_diagonal": 1.0}, "must lie between 0 and 1, got 1.0; an annotator who cannot err"),
            ({"tol": -1.0}, "tol must not be negative .* got -1.0 and 1000"),
            ({"max_iterations": 0}, "max_iterations at least 1, got .* and 0"),
            ({"prior": [0.5, 0.6]}, r"prior must be 2 probabilities that sum to 1, .* got \[0.5, 0.6\]"),
            ({"prior": [1.5, -0.5]}, "prior must be 2 probabilities"),
            ({"prior": [0.2, 0.3, 0.5]}, "prior must be 2 probabilities"),
        ],
    )
    def test_bad_options_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            staple(torch.zeros(1, 2, 3), 2, **options)


class TestSpatialStaple:
    @pytest.mark.parametrize(
        ("size", "window", "num_classes", "bias"),
        [
            ((7, 6), (3, 3), 2, 0.0),
            ((7, 6), (3, 4), 2, 0.5),
            ((6, 7), (2, 5), 3, 0.1),
            ((6, 7), (6, 1), 3, 2.0),
            ((3, 5, 4), (2, 3, 4), 2, 0.0),
            ((3, 5, 4), (3, 1, 2), 2, 1.0),
        ],
    )
    def test_equals_the_reference(self, size, window, num_classes, bias):
        said = with_silence(annotators(10, size, num_classes, 3))
        result = spatial_staple(said, num_classes, window_mm=window, bias=bias, tol=0, max_iterations=3, return_cm=True)
        posterior, fields = reference.spatial_staple(
            flat(said),
            num_classes,
            size,
            window,
            bias,
            iterations=3,
            global_iterations=int(staple(said, num_classes).iterations),
        )
        close(result.probs[0].flatten(1).T, posterior)
        assert result.cm[0, -1].isnan().all()
        # where a window holds next to nothing of a class its column is 0 / 0: compare what carries weight
        weight = torch.tensor(posterior).T > 1e-3
        for r in range(3):
            for s in range(num_classes):
                field = result.cm[0, r, :, s].flatten(1)[:, weight[s]]
                expected = torch.tensor([[m[r][i][s] for m in fields.values()] for i in range(num_classes)])
                torch.testing.assert_close(field, expected[:, weight[s]], atol=1e-5, rtol=0)

    def test_windows_are_in_millimetres_and_inside_the_image(self):
        said = annotators(11, (12, 16, 20), 2, 1)
        for options, window in [
            ({}, (3, 4, 5)),
            ({"spacing": (1, 2, 4)}, (3, 4, 5)),
            ({"window_mm": 8}, (8, 8, 8)),
            ({"window_mm": 8, "spacing": (4, 1, 0.5)}, (2, 8, 16)),
            ({"window_mm": (0.1, 7, 100)}, (1, 7, 20)),
        ]:
            assert spatial_staple(said, 2, max_iterations=1, **options).window == window

    def test_images_of_a_batch_do_not_know_each_other(self):
        said = annotators(12, (9, 8), 2, num_images=3)
        together = spatial_staple(said, 2, return_cm=True)
        for b in range(3):
            alone = spatial_staple(said[b : b + 1], 2, return_cm=True)
            assert torch.equal(together.probs[b], alone.probs[0])
            assert torch.equal(together.cm[b], alone.cm[0])
            assert together.iterations[b] == alone.iterations[0]

    def test_reports_that_it_did_not_converge(self):
        said = annotators(9, (20, 20), 2)
        assert not spatial_staple(said, 2, max_iterations=1, tol=1e-6).converged.any()
        assert spatial_staple(said, 2, max_iterations=500).converged.all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bias": -1.0}, "bias must be a finite number >= 0, got -1.0"),
            ({"bias": math.inf}, "got inf; without spatial variation take staple"),
            ({"bias": math.nan}, "bias must be a finite number >= 0, got nan"),
            ({"window_mm": 0}, "window_mm must be one positive number, or 2, one for each axis, got 0"),
            ({"window_mm": (1, 2, 3)}, r"window_mm must be .* got \(1, 2, 3\)"),
            ({"spacing": (1, -1)}, r"spacing must be .* got \(1, -1\)"),
            ({"tol": -1.0}, "tol must not be negative"),
            ({"max_iterations": 0}, "max_iterations at least 1"),
            ({"prior": [0.5, 0.6]}, "prior must be 2 probabilities"),
        ],
    )
    def test_bad_options_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            spatial_staple(torch.zeros(1, 2, 3, 3), 2, **options)

    def test_only_images_and_volumes(self):
        with pytest.raises(ValueError, match=r"must be \(B, R, H, W\) or \(B, R, D, H, W\), got 1 spatial axes"):
            spatial_staple(torch.zeros(1, 2, 3), 2)


class TestReliability:
    def test_scores_of_the_joint_table(self):
        cm = torch.tensor([[0.8, 0.1, 0.3], [0.1, 0.7, 0.3], [0.1, 0.2, 0.4]])[None]
        prior = torch.tensor([0.5, 0.3, 0.2])
        table = joint_table(cm, prior)
        close(table.sum(), 1.0)
        close(sensitivity(table)[0], [0.8, 0.7, 0.4])
        close(precision(table)[0], [0.40 / 0.49, 0.21 / 0.32, 0.08 / 0.19])  # rows of cm times the prior
        close(specificity(table)[0], [1 - 0.09 / 0.5, 1 - 0.11 / 0.7, 1 - 0.11 / 0.8])

    def test_absent_class_and_annotator(self):
        cm = torch.tensor([[[0.9, math.nan], [0.1, math.nan]], [[math.nan] * 2] * 2])
        table = joint_table(cm, torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(sensitivity(table)[0].float(), torch.tensor([0.9, math.nan]), equal_nan=True)
        assert precision(table)[0].tolist() == [1.0, 0.0]
        assert table[1].isnan().all()

    def test_of_staple(self):
        result = staple(annotators(13, (20, 20), 3, num_images=2), 3)
        table = joint_table(result.cm, result.prior)
        assert table.shape == (2, 3, 3, 3)
        torch.testing.assert_close(sensitivity(table).float(), result.cm.diagonal(dim1=-2, dim2=-1))
        assert (sensitivity(table)[:, 0] > sensitivity(table)[:, 2]).all()

    @pytest.mark.parametrize(
        ("cm", "prior"), [((2, 2), (2,)), ((1, 2, 3), (3,)), ((1, 2, 2), (3,)), ((1, 3, 3), (3, 1))]
    )
    def test_shapes_that_do_not_match(self, cm, prior):
        with pytest.raises(ValueError, match=r"cm must be \(..., R, L, L\) and prior \(..., L\), got"):
            joint_table(torch.ones(cm), torch.ones(prior))
