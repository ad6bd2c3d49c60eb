"""The theory's figure and how its widths are written."""

import math

import pytest

from pns_fast.sweeps import theory


@pytest.fixture
def evaluated():
    return theory.evaluate("relu", 3, 0.4, 0.9, [10, 30], n=40)


def test_curves_meet_the_probability_at_the_width_needed(evaluated):
    ax = theory._figure(evaluated).axes[0]
    marks = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert [y for _, y in marks] == [0.9] * 5
    widths = [round(10**x) for x, _ in marks]
    assert widths == sorted(widths)  # eps falls from curve to curve
    assert widths[2] == evaluated.needed
    solid = [line for line in ax.lines if len(line.get_xdata()) > 100 and line.get_linestyle() == "-"]
    for line, (x, _) in zip(solid, marks, strict=True):
        y = line.get_ydata()
        assert (y[1:] >= y[:-1]).all()
        assert min(y[line.get_xdata() >= x + 0.02]) >= 0.9 > max(y[line.get_xdata() <= x - 0.02])
    texts = [t.get_text() for t in ax.figure.legends[0].get_texts()]
    assert f"$\\epsilon$ = 0.4  ({evaluated.needed})" in texts
    assert f"exact match probability  ({evaluated.needed_exact})" in texts
    assert texts[-2:] == ["found, one scale", "found, a scale a neuron"]


def test_widths_beyond_floats_are_drawn():
    evaluated = theory.evaluate("helix", 5, 1e-8, 0.9, [100])
    ax = theory._figure(evaluated).axes[0]
    assert ax.get_xlim()[1] > 310
    assert "exact" not in " ".join(t.get_text() for t in ax.figure.legends[0].get_texts())  # no width is enough


def test_widths_in_few_characters():
    assert [theory.shown(n) for n in (9_999_999, 10**7, 123 * 10**400, math.inf)] == [
        "9,999,999",
        "1e+7",
        "1.23e+402",
        "never",
    ]
    for x in (0.0, 2.0, 17.5, 308.7, 4000.1):
        assert math.log10(theory._power_of_ten(x)) == pytest.approx(x, abs=1e-12)
