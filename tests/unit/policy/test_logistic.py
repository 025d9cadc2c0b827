"""What is learned of single requests and of their classes."""

from __future__ import annotations

import numpy as np

from sglang_speckv.policy.logistic import MOST_CLASSES, MOST_REQUESTS, OwnAcceptance

EXPECTED = np.full((1, 3), 0.5)
JUDGED = np.array([[1.0, 1.0, 0.0]])
RIGHT, WRONG = np.array([[1.0, 1.0, 0.0]]), np.zeros((1, 3))


def serve(own: OwnAcceptance, request: int, accepted: np.ndarray, rounds: int = 30) -> None:
    for _ in range(rounds):
        own.learn([request], EXPECTED, JUDGED, accepted)


def test_a_new_request_starts_as_one_of_its_class() -> None:
    own = OwnAcceptance()
    own.name({1: "code", 2: "talk"})
    serve(own, 1, RIGHT)
    serve(own, 2, WRONG)
    own.name({3: "code", 4: "talk", 5: "new"})
    code, talk, new, nobody = own.of([3, 4, 5, 6])
    assert code > 0.5 and talk < -0.5 and new == nobody == 0.0


def test_a_request_may_differ_from_its_class() -> None:
    own = OwnAcceptance()
    own.name({1: "code", 2: "code"})
    serve(own, 1, RIGHT, rounds=60)
    serve(own, 2, WRONG, rounds=10)
    first, second = own.of([1, 2])
    assert first > 0.5 and second < first - 0.5


def test_without_classes_nothing_is_different() -> None:
    with_classes, without = OwnAcceptance(), OwnAcceptance()
    with_classes.name({})
    for own in (with_classes, without):
        serve(own, 1, RIGHT)
    assert with_classes.of([1, 2]) == without.of([1, 2])
    assert without.of([2]) == [0.0] < without.of([1])


def test_what_is_kept_is_bounded() -> None:
    own = OwnAcceptance()
    for number in range(MOST_REQUESTS + 50):
        own.name({number: f"class {number}"})
        own.learn([number], EXPECTED, JUDGED, RIGHT)
    kept = len(own._known), len(own._classes), len(own._by_class)
    assert kept == (MOST_REQUESTS, MOST_REQUESTS, MOST_CLASSES)
    assert own.of([0]) == [0.0] < own.of([MOST_REQUESTS + 49])
