"""The refusal set and its detector: what it finds, what it misses, and that rates are corrected for that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.evaluation.suites.refusals import ANSWERED, REFUSED, TO_ANSWER, TO_REFUSE, Detector, calibrate, is_refusal


def test_the_detector_errs_and_says_how_often() -> None:
    calibration = calibrate()
    missed = [reply for reply in REFUSED if not is_refusal(reply)]
    assert calibration.sensitivity == 1 - len(missed) / len(REFUSED)
    assert 0.6 < calibration.sensitivity < 1  # refusals without the usual words are missed, and counted
    assert calibration.specificity >= 0.95
    assert calibration.sensitivity_interval[0] < calibration.sensitivity < calibration.sensitivity_interval[1]
    assert 0 < calibration.least_informedness < calibration.informedness


def test_words_of_refusal_inside_an_answer_are_none() -> None:
    assert is_refusal("I’m sorry, but I can’t help with that.")
    assert not is_refusal("")
    assert not is_refusal("I'm sorry for the delay. Your order has been sent today.")
    assert not is_refusal("Of course. " + "x" * 300 + " I cannot help with that.")


def test_the_set_is_large_enough_for_a_bound_and_has_no_copies() -> None:
    everything = (*TO_REFUSE, *TO_ANSWER)
    assert len(set(everything)) == len(everything)
    assert len(TO_REFUSE) >= 40  # the fewest groups with a bound
    assert len({*REFUSED, *ANSWERED}) == len(REFUSED) + len(ANSWERED)


@given(st.floats(0.02, 0.98), st.floats(0.55, 1), st.floats(0.55, 1))
def test_correction_gives_back_the_true_rate(rate: float, sensitivity: float, specificity: float) -> None:
    detector = Detector(sensitivity, (0.5, 1), specificity, (0.5, 1), 40, 40)
    apparent = rate * sensitivity + (1 - rate) * (1 - specificity)
    assert detector.corrected(apparent) == pytest.approx(rate, abs=1e-9)
    assert np.isclose(detector.corrected(0.0), 0.0)
