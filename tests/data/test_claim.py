"""Published accuracies on sets with planted copies; what follows is done by hand."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from decimal import ROUND_DOWN, ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from support.images import CLASSES, draw_image
from tumorlens.data import claim as claim_module
from tumorlens.data.claim import (
    MAX_CLAIMS,
    ClaimCheck,
    ClassRange,
    judge_claims,
    parse_accuracies,
)
from tumorlens.data.claimed_set import arrange
from tumorlens.data.duplicates import find_duplicates
from tumorlens.data.index import read_index
from tumorlens.errors import ConfigError, DataError
from tumorlens.files import read_model, write_model
from tumorlens.stats.paired import expected_power

if TYPE_CHECKING:
    from collections.abc import Callable

REAL = Path(__file__).parents[3] / "shared" / "data" / "brain-tumor-mri"


def judged(data: Path, *accuracies: str, trained_on: Path | None = None) -> ClaimCheck:
    claimed = arrange(
        read_index(data),
        read_index(trained_on) if trained_on else None,
        name=data,
        trained_on_name=trained_on,
    )
    found = find_duplicates(claimed.index)
    return judge_claims(claimed, found, parse_accuracies(accuracies))


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    """Four classes with eight different pictures in Training and four in Testing."""
    return make_images(subsets={"Training": 8, "Testing": 4})


@pytest.fixture
def leaky(data: Path) -> Path:
    """Return that set with four copies in Testing: 20 test images, of which 4 are seen.

    Two gliomas (equal and re-encoded), a meningioma turned, a pituitary mirrored.
    """
    train, test = data / "Training", data / "Testing"
    shutil.copy(train / "glioma/0.png", test / "glioma/bytes.png")
    Image.open(train / "glioma/1.png").save(test / "glioma/coded.jpg", quality=80)
    turned = Image.open(train / "meningioma/0.png").rotate(90)
    turned.save(test / "meningioma/turned.png")
    mirrored = Image.open(train / "pituitary/0.png").transpose(
        Image.Transpose.FLIP_LEFT_RIGHT
    )
    mirrored.save(test / "pituitary/mirrored.png")
    return data


# What follows from a figure


def test_copies_of_every_kind_are_seen_and_the_rest_is_new(leaky: Path) -> None:
    found = judged(leaky, "0.75")
    assert (found.num_train, found.num_test) == (32, 20)
    assert (found.num_seen, found.num_new, found.num_new_pictures) == (4, 16, 16)
    (claim,) = found.claims
    seen = {label: one.num_seen for label, one in claim.by_class.items()}
    assert seen == {"glioma": 2, "meningioma": 1, "no_tumor": 0, "pituitary": 1}


def test_with_all_seen_ones_right_the_rest_of_the_right_answers_are_new(
    leaky: Path,
) -> None:
    (claim,) = judged(leaky, "0.75").claims
    assert claim.fits == "rounded"
    assert claim.all.right == (15, 15)
    least = claim.if_all_seen_are_right
    assert least is not None
    assert (least.right, least.num_images) == ((11, 11), 16)
    assert least.value == (11 / 16, 11 / 16)
    assert least.num_groups == 16
    # Wilson for 16 images with t(15) = 2.1314.
    square = 2.131449545559323**2 / 16
    half = math.sqrt(square * (11 / 16 * 5 / 16) + square**2 / 4)
    centre = 11 / 16 + square / 2
    assert least.low == pytest.approx((centre - half) / (1 + square))
    assert least.high == pytest.approx((centre + half) / (1 + square))


def test_where_look_up_errs_on_seen_ones_more_new_ones_were_right(data: Path) -> None:
    # Two meningiomas of training stand as gliomas in test: look-up gets both wrong.
    for number in range(2):
        shutil.copy(
            data / f"Training/meningioma/{number}.png",
            data / f"Testing/glioma/as{number}.png",
        )
    found = judged(data, "0.5")
    assert found.look_up.seen is not None
    assert found.look_up.seen.right == (0, 0)
    (claim,) = found.claims
    assert claim.if_all_seen_are_right is not None
    assert claim.if_seen_are_looked_up is not None
    assert claim.if_all_seen_are_right.right == (7, 7)
    assert claim.if_seen_are_looked_up.right == (9, 9)
    assert (
        "If all 2 seen images were answered right, so were 7 of the 16 new ones, 43.8 %"
        in claim.words[1]
    )
    assert "as look-up answers them (0 right), 9 were, 56.2 %" in claim.words[1]


def test_a_class_can_have_as_many_right_as_the_others_leave(leaky: Path) -> None:
    (claim,) = judged(leaky, "0.90").claims  # 18 of 20, 14 of 16 new ones
    assert claim.by_class["glioma"] == ClassRange(
        num_test=6, num_seen=2, right=(4, 6), right_if_all_seen_are=(4, 6)
    )
    assert claim.by_class["no_tumor"] == ClassRange(
        num_test=4, num_seen=0, right=(2, 4), right_if_all_seen_are=(2, 4)
    )
    (claim,) = judged(leaky, "0.30").claims  # 6 of 20, 2 of 16 new ones
    assert claim.by_class["glioma"].right == (0, 6)
    assert claim.by_class["glioma"].right_if_all_seen_are == (2, 4)
    assert claim.by_class["no_tumor"].right_if_all_seen_are == (0, 2)


def test_a_class_range_is_that_of_all_ways_to_answer(leaky: Path) -> None:
    found = judged(leaky, "0.30", "0.75", "0.95")
    for claim in found.claims:
        ranges = claim.by_class
        ways = [
            new
            for new in itertools.product(
                *(range(one.num_test - one.num_seen + 1) for one in ranges.values())
            )
            if sum(new) + 4 == claim.all.right[0]
        ]
        for place, one in enumerate(ranges.values()):
            right = [way[place] + one.num_seen for way in ways]
            assert one.right_if_all_seen_are == (min(right), max(right))


def test_a_claim_must_err_on_seen_ones_to_be_as_good_on_new_ones(data: Path) -> None:
    for label in CLASSES:
        for number in range(4):
            shutil.copy(
                data / f"Training/{label}/{number}.png",
                data / f"Testing/{label}/copy{number}.png",
            )
    # 24 of 32 right, 16 seen: 12 of the 16 new ones, so 12 of the seen ones.
    found = judged(data, "0.75")
    (claim,) = found.claims
    assert claim.seen_wrong_if_new_as_good == 4
    assert found.look_up.seen is not None
    assert found.look_up.seen.right == (16, 16)
    assert (
        "To be as good on the new ones as on all, the network must have got 4 of the "
        "16 seen ones wrong; look-up gets 0 wrong." in claim.words
    )
    assert found.verdict.startswith(
        "An accuracy on this test set is not one on new patients: 16 of 32 test "
        "images (50.0 %) show a picture that is also in training;"
    )


def test_fewer_right_than_seen_says_nothing_about_new_ones(data: Path) -> None:
    for number in range(8):
        shutil.copy(data / f"Training/glioma/{number}.png", data / "Testing/glioma/")
    (data / "Testing/glioma/9.png").write_bytes(
        (data / "Training/glioma/3.png").read_bytes()
    )
    # Four of them are in the place of the four that were there: 4 of 21 are 0.1905.
    found = judged(data, "0.190")
    assert (found.num_test, found.num_seen) == (21, 9)
    claim = found.claims[0]
    assert claim.all.right == (4, 4)
    assert claim.if_all_seen_are_right is None
    assert claim.if_seen_are_looked_up is None
    assert claim.by_class["glioma"].right_if_all_seen_are is None
    assert (
        "Not all 9 that training has seen were right, so nothing follows about the 12 "
        "new ones." in claim.words
    )


def test_a_set_without_a_copy_lets_the_figure_stand(data: Path) -> None:
    found = judged(data, "0.75")
    assert (found.num_seen, found.num_new) == (0, 16)
    assert found.look_up.seen is None
    assert found.verdict.startswith(
        "An accuracy on this test set is one on new images, as far as copies go. No "
        "copies found: none of 16 test images"
    )
    (claim,) = found.claims
    assert claim.if_all_seen_are_right == claim.all
    assert claim.seen_wrong_if_new_as_good is None
    assert not any("seen" in sentence for sentence in claim.words)


def test_a_set_without_a_new_image_is_said_to_say_nothing(data: Path) -> None:
    shutil.rmtree(data / "Testing")
    for label in CLASSES:
        (data / "Testing" / label).mkdir(parents=True)
        shutil.copy(data / f"Training/{label}/0.png", data / "Testing" / label)
    found = judged(data, "0.75", "1.0")
    assert found.verdict == (
        "An accuracy on this test set says nothing about new images: training has seen "
        "the picture of each of 4 test images."
    )
    assert found.look_up.new is None
    for claim in found.claims:
        assert claim.if_all_seen_are_right is None
        assert claim.seen_wrong_if_new_as_good is None


# Digits


def test_the_digits_of_a_figure_give_the_numbers_that_round_to_it() -> None:
    for num, decimals in itertools.product((1, 7, 40, 394), (1, 2, 3, 4)):
        unit = Decimal(1).scaleb(-decimals)
        rounded: dict[Decimal, set[int]] = {}
        cut: dict[Decimal, set[int]] = {}
        for right in range(num + 1):
            exact = Decimal(right) / num
            for way in (ROUND_HALF_UP, ROUND_HALF_DOWN):
                rounded.setdefault(exact.quantize(unit, way), set()).add(right)
            cut.setdefault(exact.quantize(unit, ROUND_DOWN), set()).add(right)
        for step in range(10**decimals + 1):
            value = unit * step
            fits, (least, most) = claim_module._counts_of(value, num)
            if expected := rounded.get(value):
                assert (fits, {*range(least, most + 1)}) == ("rounded", expected)
            elif expected := cut.get(value):
                assert (fits, {*range(least, most + 1)}) == ("cut off", expected)
            else:
                assert fits == "no"
                assert most - least == 1
                assert Decimal(least) / num < value < Decimal(most) / num


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0.83248730964467", id="all digits"),
        pytest.param("0.832487344741821", id="a number of 32 bits"),
    ],
)
def test_a_figure_with_all_its_digits_is_the_number_it_came_from(text: str) -> None:
    assert claim_module._counts_of(Decimal(text), 394) == ("rounded", (328, 328))


def test_whole_numbers_are_exact_and_decimals_are_not() -> None:
    counts = claim_module._counts_of
    assert counts(Decimal("1"), 40) == ("rounded", (40, 40))
    assert counts(Decimal("0"), 40) == ("rounded", (0, 0))
    assert counts(Decimal("1.0"), 40) == ("rounded", (38, 40))
    assert counts(Decimal("0.0"), 40) == ("rounded", (0, 2))


def test_a_figure_that_no_number_gives_stands_for_the_two_next_to_it(
    leaky: Path,
) -> None:
    (claim,) = judged(leaky, "0.77").claims
    assert (claim.fits, claim.all.right) == ("no", (15, 16))
    assert claim.all.value == (0.75, 0.8)
    assert claim.words[0] == (
        "No number of right answers gives 0.77: 15 of 20 are 0.75, 16 are 0.80. A mean "
        "over batches can be such a figure. Here it stands for 15 or 16."
    )
    assert claim.if_all_seen_are_right is not None
    assert claim.if_all_seen_are_right.right == (11, 12)
    # The ends: the interval of the first number, and that of the second.
    alone = [
        judged(leaky, text).claims[0].if_all_seen_are_right for text in ("0.75", "0.80")
    ]
    assert alone[0] is not None
    assert alone[1] is not None
    assert claim.if_all_seen_are_right.low == alone[0].low
    assert claim.if_all_seen_are_right.high == alone[1].high


def test_figures_that_another_number_of_images_gives_say_so(
    make_images: Callable[..., Path],
) -> None:
    data = make_images(subsets={"Training": 2, "Testing": 5})
    of_19 = [f"{right / 19:.4f}" for right in (11, 13, 16, 18)]
    found = judged(data, *of_19)
    assert found.other_sizes == (19,)
    assert found.words[-1] == (
        "20 images do not give all 4 accuracies, and 19 would: they may be of another "
        "test set, or of this one without 1 image."
    )
    assert judged(data, "0.5789").other_sizes == ()
    assert judged(data, "0.5789474").other_sizes == (19,)
    of_21 = [f"{right / 21:.4f}" for right in (11, 13, 16, 19)]
    assert judged(data, *of_21).words[-1].endswith("may be of another test set.")
    assert judged(data, "0.7500", "0.8000").other_sizes == ()


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("83.25", r"in \[0, 1\], got 83\.25", r"did you mean 0\.8325\?"),
        ("1.01", r"in \[0, 1\], got 1\.01", "share of images"),
        ("-0.5", r"in \[0, 1\], got -0\.5", "share of images"),
        ("101", r"in \[0, 1\], got 101", "share of images"),
        ("83.25 %", "such as 0.8325, got '83.25 %'", "0.8325 for 83.25 %"),
        ("0,8325", "got '0,8325'", "decimal point"),
        ("nan", "got 'nan'", "decimal point"),
        ("1e-1", "got '1e-1'", "decimal point"),
        ("\u0660.\u0665", "got '\u0660.\u0665'", "decimal point"),
        (".", "got '.'", "decimal point"),
        ("", "got ''", "decimal point"),
        ("0." + "8" * 1000, "got '0.8888", "decimal point"),
    ],
)
def test_what_is_no_accuracy_is_refused(text: str, problem: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        parse_accuracies([text])
    assert len(refused.value.problem) < 120
    assert hint.replace("\\", "") in refused.value.hint


def test_more_claims_than_can_be_compared_are_refused() -> None:
    texts = [f"0.8{number:02}" for number in range(MAX_CLAIMS + 1)]
    assert len(parse_accuracies(texts[1:])) == MAX_CLAIMS
    assert list(parse_accuracies(["0.5", " 0.5", "0.50"])) == ["0.5", "0.50"]
    with pytest.raises(ConfigError, match="got 21 accuracies, and at most 20"):
        parse_accuracies(texts)


# Differences


def test_two_claims_of_one_set_are_compared_the_higher_first(leaky: Path) -> None:
    found = judged(leaky, "0.60", "0.95", "0.85")
    pairs = [(one.accuracies, one.images) for one in found.differences]
    assert pairs == [
        (("0.95", "0.60"), (7, 7)),
        (("0.85", "0.60"), (5, 5)),
        (("0.95", "0.85"), (2, 2)),
    ]
    assert [one.can_be_found for one in found.differences] == [True, True, False]
    assert [one.most_disagreements for one in found.differences] == [11, 5, None]
    assert "No paired test over groups can find that" in found.differences[2].words
    # 19 and 17 right, 4 seen: 15/16 and 13/16 of the new ones.
    new = 16 * (15 / 16 * 3 / 16 + 13 / 16 * 1 / 16)
    assert found.differences[2].expected_disagreements == pytest.approx(new)


def test_equal_counts_are_no_difference_and_misfits_widen_it(leaky: Path) -> None:
    (same,) = judged(leaky, "0.75", "0.7500").differences
    assert same.words == "0.75 against 0.7500: 0 right answers apart: no difference."
    (apart,) = judged(leaky, "0.77", "0.60").differences
    assert apart.images == (3, 4)
    (both,) = judged(leaky, "0.77", "0.62").differences  # 15 or 16, 12 or 13
    assert both.images == (2, 4)


def test_the_smallest_difference_is_the_first_with_the_power(leaky: Path) -> None:
    (claim,) = judged(leaky, "0.95").claims
    num = claim.smallest_difference
    assert num is not None
    is_seen = np.arange(20) < 4

    def power(num_less: int) -> float:
        first, second = (
            np.where(is_seen, 1.0, (19 - less - 4) / 16) for less in (0, num_less)
        )
        return expected_power(first, second, copies=np.arange(20), groups=np.arange(20))

    assert power(num) >= 0.8 > power(num - 1)
    assert (
        f"must get at least {num} fewer right, {5 * num:.1f} points" in claim.words[-1]
    )
    assert claim.words[-1].endswith(
        "if both are right about all seen images and err independently on the new ones."
    )


def test_where_nothing_can_be_shown_that_is_said(leaky: Path) -> None:
    (claim,) = judged(leaky, "0.15").claims
    assert claim.smallest_difference is None
    assert claim.words[-1] == (
        "No paired test over groups would find another network worse in 80 % of cases."
    )


# Two sets


def test_two_halves_of_a_set_are_judged_like_the_whole(leaky: Path) -> None:
    whole = judged(leaky, "0.75", "0.77")
    halves = judged(leaky / "Testing", "0.75", "0.77", trained_on=leaky / "Training")
    changed = {"data", "trained_on", "digest", "trained_on_digest"}
    assert halves.model_dump(exclude=changed) == whole.model_dump(exclude=changed)
    assert (halves.data, halves.trained_on) == ("Testing", "Training")
    assert whole.trained_on is None
    assert halves.digest == read_index(leaky / "Testing").digest
    # In a set with both, only Testing is test, and only Training was trained on.
    same = judged(leaky, "0.75", "0.77", trained_on=leaky)
    assert same.model_dump(exclude=changed) == whole.model_dump(exclude=changed)


def test_tables_that_share_a_file_have_seen_it(leaky: Path) -> None:
    tables = {"train.csv": "Training", "test.csv": "Testing"}
    for name, subset in tables.items():
        rows = [
            f"{path.relative_to(leaky)},{path.parent.name}"
            for path in sorted((leaky / subset).rglob("*.*"))
        ]
        if subset == "Training":
            rows.append("Testing/no_tumor/0.png,no_tumor")
        (leaky / name).write_text("\n".join(["path,label", *rows]))
    found = judged(leaky / "test.csv", "0.75", trained_on=leaky / "train.csv")
    assert (found.num_train, found.num_test, found.num_seen) == (33, 20, 5)
    assert (found.data, found.trained_on) == ("test.csv", "train.csv")
    assert found.claims[0].by_class["no_tumor"].num_seen == 1


def test_classes_of_two_sets_may_be_spelt_differently(
    leaky: Path, make_images: Callable[..., Path]
) -> None:
    other = leaky.parent / "other"
    for label in ("glioma", "meningioma", "pituitary"):
        shutil.copytree(leaky / "Training" / label, other / f"{label}_tumor")
    test = leaky / "Testing"
    found = judged(test, "0.75", trained_on=other)
    expected = judged(leaky, "0.75").look_up.seen
    assert found.look_up.seen is not None
    assert expected is not None
    assert found.look_up.seen.right == expected.right
    assert found.classes_without_training == ("no_tumor",)
    assert found.words[-1] == "No training image is of the class no_tumor."


def test_patients_in_training_are_counted_among_the_new_ones(leaky: Path) -> None:
    (leaky / "metadata.csv").write_text(
        "path,patient\nTraining/glioma/5.png,SECRET\nTesting/glioma/2.png,SECRET\n"
        "Testing/glioma/bytes.png,SECRET\n"
    )
    found = judged(leaky, "0.75")
    assert (found.num_seen, found.num_new_related) == (4, 1)
    assert any("1 of them is of a patient in training" in one for one in found.words)
    written = found.model_dump_json()
    assert "SECRET" not in written
    assert ".png" not in written


def test_test_images_that_cannot_be_read_are_left_out_and_said(leaky: Path) -> None:
    (leaky / "Testing/glioma/bad.png").write_text("no image")
    found = judged(leaky, "0.75")
    assert (found.num_test, found.num_unreadable) == (20, 1)
    assert any(
        one.startswith("1 test image cannot be read and is left out here;")
        for one in found.words
    )


def test_validation_images_were_trained_on(leaky: Path) -> None:
    shutil.copytree(leaky / "Training", leaky / "Validation")
    shutil.rmtree(leaky / "Training")
    assert judged(leaky, "0.75").num_seen == 4


def test_sets_that_cannot_be_judged_are_refused(
    leaky: Path, make_images: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match="has no training and no test subset") as no:
        judged(leaky / "Training", "0.75")
    assert "--trained-on" in no.value.hint
    only_test = leaky.parent / "only"
    shutil.copytree(leaky / "Testing", only_test / "Testing")
    with pytest.raises(DataError, match="only has no training subset"):
        judged(only_test, "0.75")
    with pytest.raises(DataError, match="only has test images only"):
        judged(leaky, "0.75", trained_on=only_test)
    others = make_images(num_each=1, name="others")
    for label in CLASSES:
        (others / label).rename(others / f"x{label}")
    with pytest.raises(DataError, match=r"no class of .* \(glioma, .*is one of .*xgli"):
        judged(leaky, "0.75", trained_on=others)
    for path in (leaky / "Testing").rglob("*.*"):
        path.write_text("no image")
    with pytest.raises(DataError, match=r"none of 20 test images can be read; the fi"):
        judged(leaky, "0.75")


def test_one_test_image_has_no_interval(data: Path) -> None:
    one, two = data.parent / "one", data.parent / "two"
    (one / "glioma").mkdir(parents=True)
    (one / "no_tumor").mkdir()
    Image.fromarray(draw_image("glioma", 77)).save(one / "glioma/a.png")
    Image.fromarray(draw_image("glioma", 77)).save(one / "no_tumor/b.png")
    shutil.copytree(data / "Training", two)
    (claim,) = judged(one, "0.5", trained_on=two).claims
    assert (claim.all.num_groups, claim.all.low, claim.all.high) == (1, None, None)
    assert claim.words[0].startswith("0.5: 1 of 2, 50.0 %, ")


def test_the_file_is_read_back_as_it_was_written(leaky: Path, tmp_path: Path) -> None:
    found = judged(leaky, "0.75", "0.77")
    write_model(tmp_path / "claim.json", found)
    json.loads((tmp_path / "claim.json").read_text())
    assert read_model(tmp_path / "claim.json", ClaimCheck, hint="") == found


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real images are not at {REAL}")
def test_the_real_set_gives_the_figures_of_the_docs() -> None:
    found = judged(REAL, "0.8325", "0.8196", "0.8273", "0.7912")
    assert (found.num_test, found.num_seen, found.num_new) == (394, 264, 130)
    assert found.other_sizes == (388,)
    assert found.look_up.all.right == (318, 318)
    first, *_, last = found.claims
    assert first.all.right == (328, 328)
    assert first.if_all_seen_are_right is not None
    assert first.if_seen_are_looked_up is not None
    assert first.if_all_seen_are_right.right == (64, 64)
    assert first.if_seen_are_looked_up.right == (66, 66)
    assert first.by_class["glioma_tumor"].right_if_all_seen_are == (34, 84)
    assert first.smallest_difference == 33
    assert (last.fits, last.all.right) == ("no", (311, 312))
