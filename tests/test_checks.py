"""Arguments that are checked in the same way wherever they are given."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from pyrovae.checks import as_number, check_finite, check_whole, whole
from pyrovae.errors import InputError


@pytest.mark.parametrize("three", [3, np.int64(3), np.array(3), torch.tensor(3)])
def test_a_whole_number_may_be_anybodys(three):
    assert (whole("epochs", three), type(whole("epochs", three))) == (3, int)
    check_whole(epochs=three, seed=None)
    check_finite(epochs=three, lr=None)


@pytest.mark.parametrize("wrong", [1.5, True, "3", None, math.nan, np.ones(2), torch.ones(2)])
def test_what_is_no_whole_number_is_refused(wrong):
    with pytest.raises(InputError, match=r"^epochs is .*\. Give a whole number, at least 1\.$"):
        whole("epochs", wrong)


def test_the_least_is_the_first_that_may_be():
    check_whole(least=2, bins=2)
    check_finite(least=0, strength=0)
    check_finite(above=0, strength=1e-300)
    for wrong, words in [
        (lambda: check_whole(least=2, bins=1), "bins is 1. Give a whole number, at least 2."),
        (lambda: check_whole(least=None, seed=0.5), "seed is 0.5. Give a whole number."),
        (
            lambda: check_finite(least=0, nats=-0.1),
            "nats is -0.1. Give a finite number, at least 0.",
        ),
        (lambda: check_finite(above=0, lr=0.0), "lr is 0.0. Give a finite number above 0."),
    ]:
        with pytest.raises(InputError) as caught:
            wrong()
        assert str(caught.value) == words


@pytest.mark.parametrize("wrong", ["x", True, math.nan, math.inf, [1.0], np.float32("-inf")])
def test_what_is_no_finite_number_is_refused(wrong):
    with pytest.raises(InputError, match=r"^lr is .*\. Give a finite number\.$"):
        check_finite(beta=-1.0, lr=wrong)


def test_what_is_no_number_of_anybodys_stays_what_it_is():
    half = Fraction(1, 2)
    assert as_number(half) is half
    assert as_number(np.float32(0.5)) == 0.5
