"""Each metric by hand, what texts are taken to say, differences, and what cannot be scored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlora.common.errors import ConfigError, DataError
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.scoring.metrics import Metric, difference, outcomes, score
from mixlora.evaluation.scoring.parsing import ENTAILMENT, TRUE_FALSE, YES_NO, Finder, as_label, mentions, tidy
from tests.support.answers import coded, predictions


def value(found, name=None):
    return found.values[name or found.main].value


def credit(metric, *pairs, labels=None, **more):
    """How right each (predict, target) is, and how many were not parsed, all scored together."""
    found = outcomes(predictions(*pairs, **more), Metric(metric), labels)
    return found.credit.tolist(), found.unparsed


# --- exact and contained ---


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  Red\n car. ", "red car"),
        ('"Red."', "red"),
        ('"Red".', "red"),
        ("\u201cRed\u201d", "red"),
        ("'", "'"),
        ("Red..", "red."),
        ("3.5", "3.5"),
        (".", ""),
    ],
)
def test_tidy(text, wanted):
    assert tidy(text) == wanted


def test_exact_by_hand():
    found = score(predictions(("Red.", "red"), ("dark red", "red"), ("", "red"), ("'RED'", "Red.")), "exact", draws=10)
    assert (found.metric, found.n, found.unparsed, found.main) == ("exact", 4, 1, "accuracy")
    assert value(found) == 0.5
    # Wilson's interval of 2 in 4 is 1/2 -+ z / (2 sqrt(4 + z^2))
    assert found.values["accuracy"].low == pytest.approx(0.5 - 1.959964 / 2 / np.sqrt(4 + 1.959964**2))
    assert found.values["accuracy"].low + found.values["accuracy"].high == pytest.approx(1)


def test_references_are_right_answers():
    assert credit("exact", ("crimson", "red"), ("blue", "red"), references=("Crimson", "")) == ([1, 0], 0)
    assert credit("contained", ("dark crimson", "red"), ("a red one", "red"), references=("crimson",)) == ([1, 1], 0)


@pytest.mark.parametrize(
    ("said", "target", "right"),
    [
        ("It is a stop sign.", "stop sign", True),
        ("stop signs", "stop sign", False),
        ("It is STOP-sign", "stop sign", True),
        ("I see 3.5 cups", "5", False),
        ("I see 1,000 cups", "000", False),
        ("I see 5.", "5", True),
        ("a C++ book", "C++", True),
        ("It isn't", "is not", True),
        ("category", "cat", False),
        ("le café noir", "Café", True),
    ],
)
def test_contained_is_in_whole_words(said, target, right):
    assert mentions(said, target) is right
    assert credit("contained", (said, target)) == ([float(right)], 0)


@pytest.mark.parametrize("metric", ["exact", "contained", "vqa"])
def test_no_right_answer(metric):
    with pytest.raises(DataError, match="Example 0 of task t has an empty target and no references; give the right"):
        score(predictions(("x", " ")), metric)


# --- classification ---


def test_the_first_label_counts_and_the_longest_at_one_place():
    labels = ["automobile", "auto", "truck", "fire truck", "aquarium_fish"]
    pairs = [
        ("An automobile.", "automobile"),
        ("An automobile.", "auto"),
        ("a fire truck, not a truck", "fire truck"),
        ("a truck, or a fire truck", "fire truck"),
        ("Fire Truck", "truck"),
        ("an aquarium fish", "aquarium_fish"),
        ("some vehicle", "truck"),
        ("TRUCK", "Truck."),
    ]
    assert credit("classification", *pairs, labels=labels) == ([1, 0, 1, 0, 0, 1, 0, 1], 1)


def test_labels_are_the_targets_if_none_are_given():
    pairs = [("a cat and a dog", "cat"), ("a bird, or a dog", "dog"), ("a bird", "cat")]
    assert credit("classification", *pairs) == ([1, 1, 0], 1)  # nobody is a bird
    assert credit("classification", *pairs, labels=["cat", "dog", "bird"]) == ([1, 0, 0], 0)


def test_labels_that_do_not_fit():
    with pytest.raises(
        DataError, match="Example 0 of task t has the target 'cow', which is not among the 2 labels; add it"
    ):
        score(predictions(("cat", "cow")), "classification", labels=["cat", "dog"])
    with pytest.raises(DataError, match=r"The label ' ' has no word in it"):
        score(predictions(("cat", "cat")), "classification", labels=["cat", " "])
    with pytest.raises(ConfigError, match="labels are given, but the metric exact has none"):
        score(predictions(("cat", "cat")), "exact", labels=["cat"])
    with pytest.raises(DataError, match="not among the 0 labels"):
        score(predictions(("cat", "cat")), "classification", labels=[])


@given(st.lists(st.text("ab -_", min_size=1, max_size=5).filter(lambda text: tidy(text).strip(" -_")), min_size=1))
def test_a_label_alone_is_found(labels):
    finder = Finder({as_label(label): label for label in labels if as_label(label)})
    for label in filter(as_label, labels):
        assert as_label(finder.find(f"It is {label}.")) == as_label(label)


# --- yes or no, true or false, entailment ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes, there is no doubt.", "yes"),
        ("No.", "no"),
        ("There is not a dog", "no"),
        ("There isn't a dog", "no"),
        ("There isn\u2019t", "no"),
        ("there isnt", "no"),
        ("I cannot see one", "no"),
        ("yesterday, a knot", None),
        ("I'm not sure", None),
        ("It can't be determined. But yes", "yes"),
        ("It is not possible to tell", None),
        ("", None),
    ],
)
def test_yes_or_no(text, said):
    assert YES_NO.find(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("True", "true"),
        ("That is incorrect.", "false"),
        ("Yes, it is on the right", "true"),
        ("It is on the right", None),
        ("It isn't correct", "false"),
        ("This is not false", "true"),
        ("The cat is not on the mat", "false"),
        ("Unclear.", None),
    ],
)
def test_true_or_false(text, said):
    assert TRUE_FALSE.find(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Entailment", "entailment"),
        ("yes", "entailment"),
        ("The image entails it", "entailment"),
        ("maybe", "neutral"),
        ("Undetermined.", "neutral"),
        ("It is not possible to say, so no", "neutral"),
        ("It cannot be determined", "neutral"),
        ("Not necessarily true", "neutral"),
        ("neither entailment nor contradiction", "neutral"),
        ("contradictory", "contradiction"),
        ("It is not true", "contradiction"),
        ("No", "contradiction"),
        ("It doesn't entail it", None),
        ("There is no contradiction", None),
        ("not entailed: neutral", "neutral"),
    ],
)
def test_entailment(text, said):
    assert ENTAILMENT.find(text) == said


def test_targets_are_parsed_as_predictions_are():
    pairs = [("It is true", "Yes"), ("maybe", "neutral"), ("no", "False"), ("?", "maybe"), ("yes", "no")]
    assert credit("entailment", *pairs) == ([1, 1, 1, 0, 0], 1)
    assert credit("vsr", ("Yes", "True"), ("False", "no"), ("left", "no")) == ([1, 1, 0], 1)


@pytest.mark.parametrize(
    ("metric", "words"),
    [("pope", "neither yes nor no"), ("vsr", "neither true nor false"), ("entailment", "neither entailment nor")],
)
def test_targets_of_another_metric(metric, words):
    with pytest.raises(DataError, match=f"Example 0 of task t has the target 'red', which is {words}.*another metric"):
        score(predictions(("yes", "red")), metric)


def test_pope_by_hand():
    # truly yes: t t m u; truly no: f n n n. Said yes: t t f. Right: t t n n n
    found = score(coded("ttmufnnn"), "pope")
    assert {name: value(found, name) for name in found.values} == pytest.approx(
        {"accuracy": 5 / 8, "precision": 2 / 3, "recall": 2 / 4, "f1": 2 * 2 / (3 + 4), "yes_rate": 3 / 8}
    )
    assert (found.main, found.unparsed, found.n) == ("accuracy", 1, 8)
    assert (
        found.values["precision"].low
        == score(predictions(("x", "x"), ("x", "x"), ("y", "x")), "exact").values["accuracy"].low
    )  # a share of the three that were called yes


def test_pope_without_any_yes():
    found = score(coded("nnm"), "pope").values
    assert np.isnan([found["precision"].value, found["precision"].low, found["precision"].high]).all()
    assert (found["recall"].value, found["f1"].value, found["yes_rate"].value) == (0, 0, 0)
    only_no = score(coded("nn"), "pope").values
    assert np.isnan([only_no[name].value for name in ("precision", "recall", "f1")]).all()


# --- vqa ---


def test_vqa_with_and_without_references():
    people = ("red",) * 2 + ("blue",) * 8
    found = score(predictions(("Red.", "blue"), ("the blue", "blue"), ("", "blue"), references=people), "vqa")
    assert value(found) == pytest.approx((0.6 + 1) / 3)
    assert found.unparsed == 1
    assert credit("vqa", ("two", "2"), ("a 2", "two"), ("3", "two")) == ([1, 1, 0], 0)


# --- mme ---


def test_mme_by_hand():
    # both right, one right, none right
    found = score(coded("tntffm", image=True), Metric.MME)
    assert found.n == 6
    assert {name: value(found, name) for name in found.values} == pytest.approx(
        {"score": 50 + 100 / 3, "accuracy": 1 / 2, "accuracy_plus": 1 / 3}
    )


def test_mme_resamples_images():
    """Questions of an image that are right or wrong together scatter as one: sqrt(2) more than apart."""
    together, apart = coded("tnmf" * 100, image=True), coded("tmnf" * 100, image=True)
    widths = [(e := score(s, "mme").values["accuracy"]).high - e.low for s in (together, apart)]
    assert widths[0] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 200), rel=0.08)
    assert widths[1] < widths[0] / 4  # each image has one right


def test_mme_needs_two_questions_an_image():
    with pytest.raises(DataError, match=r"The image 1\.png of MME has 1 predictions, but must have 2"):
        score(coded("tnt", image=True), "mme")
    with pytest.raises(DataError, match="Example 0 of task t has no image_path, which MME needs to pair"):
        score(coded("tn"), "mme")


# --- all metrics ---


def test_what_cannot_be_scored():
    with pytest.raises(DataError, match="There are no predictions to score"):
        score([], "exact")
    with pytest.raises(ConfigError, match="The metric 'bleu' is unknown; choose from exact, contained, classification"):
        score(coded("t"), "bleu")
    with pytest.raises(ConfigError, match="draws is 0"):
        score(coded("t"), "pope", draws=0)


SIDES = st.lists(st.sampled_from("tfnmu"), min_size=2, max_size=12).map(lambda codes: codes[: len(codes) // 2 * 2])


@pytest.mark.parametrize("metric", ["pope", "mme", "exact", "vqa", "classification", "vsr"])
@settings(max_examples=25, deadline=None)
@given(codes=SIDES, data=st.data())
def test_the_order_of_predictions_does_not_matter(metric, codes, data):
    first = coded(codes, image=True)
    second = data.draw(st.permutations(first))
    assert repr(score(first, metric, draws=20)) == repr(score(second, metric, draws=20))  # NaN is not equal to itself


# --- differences ---


@pytest.mark.parametrize("metric", list(Metric))
@settings(max_examples=25, deadline=None)
@given(codes=SIDES, data=st.data())
def test_a_model_beside_itself(metric, codes, data):
    first = coded(codes, image=True)
    found = difference(first, data.draw(st.permutations(first)), metric, draws=20)
    assert found.differing == 0
    for estimate in found.values.values():
        assert np.isnan(estimate.value) or (estimate.value == 0 and estimate.low == -estimate.high)


def test_a_difference_by_hand():
    # right: t n n; then t, f and n: the second example is lost, the fourth gained
    first, second = coded("tnnf"), coded("tfnn")
    found = difference(first, list(reversed(second)), "pope")
    assert (found.n, found.differing, found.main) == (4, 2, "accuracy")
    alone = [score(side, "pope") for side in (first, second)]
    for name, estimate in found.values.items():
        assert estimate.value == pytest.approx(value(alone[1], name) - value(alone[0], name))


def test_pairing_narrows_the_interval():
    """Two models that err on the same examples, but for two of them."""
    first, second = coded("tm" * 50), coded("tm" * 48 + "tttt")
    found = difference(first, second, "pope").values["accuracy"]
    assert found.value == pytest.approx(0.02)
    assert found.high - found.low < 0.1 < score(first, "pope").values["accuracy"].high - 0.5 + 0.05


def test_a_difference_of_mme_is_by_image():
    first, second = coded("tmtm", image=True), coded("tntm", image=True)
    second = [Prediction(**{**vars(a), "predict": b.predict}) for a, b in zip(first, second, strict=True)]
    found = difference(first, second, "mme")
    assert found.values["score"].value == value(score(second, "mme")) - value(score(first, "mme"))
    moved = [Prediction(**{**vars(one), "image_path": f"{i % 2}.png"}) for i, one in enumerate(first)]
    with pytest.raises(DataError, match="The two sides pair questions to images in different ways"):
        difference(first, moved, "mme")


def test_sides_that_do_not_fit():
    first = coded("tnt")
    with pytest.raises(DataError, match="2 examples, the first of them 1, have a prediction only on the first side; c"):
        difference(first, first[:1], "pope")
    with pytest.raises(DataError, match="1 examples, the first of them 2, have a prediction only on the second side"):
        difference(first[:2], first, "pope")
    with pytest.raises(DataError, match="The second side has several predictions with one question_id"):
        difference(first, [*first, first[0]], "pope")
    with pytest.raises(DataError, match="Example 2 of task t has the target 'yes' on the first side and 'no'"):
        difference(first, coded("tnn"), "pope")
