"""The figures of recovery and of layers: what is drawn, and where a log axis has no place for it."""

import math
import warnings

import numpy as np
import pytest

from pns_fast import sweeps
from pns_fast.cli import main
from pns_fast.sweeps import figure_style

SNIP = figure_style.STYLES["snip"][0]
# Circle of depth 5 in width 100: 108 weights in layers of 200, 10,000, 10,000 and 400, and 22 biases
CIRCLE_LAYERS = [4 / 200, 4 / 10_000, 20 / 10_000, 80 / 400]


def lines_of(ax, colour):
    return [line for line in ax.lines if line.get_color() == colour]


def curve_of(ax, colour=SNIP):
    """The line itself: markers are lines of their own."""
    return next(line for line in lines_of(ax, colour) if line.get_linestyle() != "None")


def crosses_of(ax, colour=SNIP):
    return [x for line in lines_of(ax, colour) if line.get_marker() == "x" for x in line.get_xdata()]


@pytest.fixture
def snip(record):
    """Recall 0.2, 0.3 and 1 at the densities 0.01, 0.1 and 1; at 0.01 nothing is connected."""
    return [
        record(density=d, density_label=f"{d:g}", seed=s, recall=r + (s - 1) / 100, precision=p, effective_density=e)
        for d, r, p, e in ((0.01, 0.2, 0.0, 0.0), (0.1, 0.3, 0.02, 0.05), (1.0, 0.99, 0.006, 1.0))
        for s in range(3)
    ]


def test_recovery_has_a_row_a_task_and_shows_the_means(snip):
    drawn = sweeps.recovery_figure(snip)
    precision, recall, effective = drawn.axes
    np.testing.assert_allclose(curve_of(recall).get_ydata(), [0.2, 0.3, 0.99], rtol=1e-12)
    np.testing.assert_allclose(curve_of(precision).get_ydata()[1:], [0.02, 0.006], rtol=1e-12)
    np.testing.assert_allclose(curve_of(effective).get_ydata()[1:], [0.05, 1.0], rtol=1e-12)
    assert [ax.get_yscale() for ax in drawn.axes] == ["log", "linear", "log"]
    band = recall.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(0.19), pytest.approx(1.0))


def test_a_ticket_of_density_a_tenth_makes_no_warning(record):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweeps.recovery_figure([record(density=d, density_label=f"{d:g}", ticket_density=0.1) for d in (0.1, 1.0)])


def test_means_of_zero_are_crosses_in_a_strip_below_the_axis(snip):
    precision, recall, effective = sweeps.recovery_figure(snip).axes
    assert crosses_of(precision) == crosses_of(effective) == [0.01]
    assert crosses_of(recall) == []
    for ax in (precision, effective):
        top = ax.patches[0].get_y() + ax.patches[0].get_height()
        (cross,) = [line for line in lines_of(ax, SNIP) if line.get_marker() == "x"]
        assert top < min(y for line in lines_of(ax, SNIP) if line is not cross for y in line.get_ydata() if y > 0)
        height = (ax.transData + ax.transAxes.inverted()).transform((0.01, top))[1]
        assert 0 < cross.get_ydata()[0] < height < 0.2
        assert [t.get_text() for t in ax.get_yticklabels()][-1] == "0"
    texts = [t.get_text() for t in sweeps.recovery_figure(snip).legends[0].get_texts()]
    assert texts == ["SNIP", "Random mask, expected", "Density of the ticket", "Mean of 0"]


def test_a_random_mask_finds_its_density_of_the_ticket(snip):
    precision, recall, _ = sweeps.recovery_figure(snip).axes
    grey = figure_style.RANDOM_LEVEL["color"]
    level = lines_of(precision, grey)[0].get_ydata()[0]
    assert level == pytest.approx(130 / 20_904)  # weights and biases: the precision of keeping everything
    np.testing.assert_array_equal(*lines_of(recall, grey)[0].get_xydata().T)


def test_keeping_everything_has_the_precision_of_a_random_mask(tmp_path):
    cells = sweeps.expand("singleshot", ["all"], ["snip"], [1.0], [0, 1], [3, 5, 7], [40], n_samples=50, epochs=0)
    sweeps.run(cells, tmp_path / "x.db")
    for panel in sweeps.panels(sweeps.read(tmp_path / "x.db")):
        (point,) = panel.curves["snip"]
        assert point.precision.low == point.precision.high == panel.planted.density
        assert point.recall.mean == 1.0


def test_layers_has_two_rows_a_task_and_a_column_a_density_below_1(snip):
    drawn = sweeps.layers_figure(snip)
    shown = [ax for ax in drawn.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == ["density 0.01", "density 0.1", "", ""]
    density, recall = shown[0], shown[2]
    assert list(density.get_xticks()) == [1, 2, 3, 4]
    np.testing.assert_allclose(curve_of(density).get_ydata(), [0.5, 0.1, 0.05, 0.4], rtol=1e-12)
    np.testing.assert_allclose(curve_of(recall).get_ydata(), [0.5, 0.2, 0.0, 0.6], rtol=1e-12)
    ticket = next(line for line in density.lines if line.is_dashed() and line.get_color() == "black")
    np.testing.assert_allclose(ticket.get_ydata(), CIRCLE_LAYERS, rtol=1e-12)


def test_a_layer_that_is_empty_in_most_networks_is_a_cross(record):
    layers = [[0.5, 0.0, 0.1, 0.5]] * 2 + [[0.5, 0.2, 0.0, 0.5]]
    records = [record(seed=s, layer_density=found, collapsed=1.0) for s, found in enumerate(layers)]
    ax = sweeps.layers_figure(records).axes[0]
    means = curve_of(ax).get_ydata()
    assert math.isnan(means[1])
    np.testing.assert_allclose([means[0], *means[2:]], [0.5, 0.2 / 3, 0.5], rtol=1e-12)
    assert crosses_of(ax) == [2.0]
    assert ax.get_ylim()[0] < min(CIRCLE_LAYERS)


def test_density_1_is_drawn_where_there_is_no_other(record):
    shown = [ax for ax in sweeps.layers_figure([record(density=1.0, density_label="1")]).axes if ax.get_visible()]
    assert shown[0].get_title() == "density 1"


def test_architectures_are_told_apart_and_may_have_other_layers_and_densities(record):
    deep = record(depth=6, layer_density=[0.5] * 5, layer_recall=[0.5] * 5)
    records = [record(density_label="ticket", density=0.005), record(), deep]
    for draw in (sweeps.recovery_figure, sweeps.layers_figure):
        labels = [ax.get_ylabel() for ax in draw(records).axes]
        assert any("Circle, depth 5" in text for text in labels)
        assert any("Circle, depth 6" in text for text in labels)
    visible = [[ax.get_visible() for ax in sweeps.layers_figure(records).axes[i : i + 2]] for i in (0, 2, 4, 6)]
    assert visible == [[True, True], [True, True], [True, False], [True, False]]


@pytest.mark.parametrize("show", ["performance", "recovery", "layers"])
def test_plot_shows_what_is_asked_for(tmp_path, show, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = sweeps.expand("singleshot", ["relu"], ["snip"], [0.1], [0], [3], [8], n_samples=50, epochs=0)
    sweeps.run(cells, "x.db")
    assert main(["plot", "x.db", "-o", "x.svg", "--show", show, "--quiet"]) == 0
    words = {"performance": "strong ticket", "recovery": "Precision", "layers": "kept density"}
    text = (tmp_path / "x.svg").read_text()
    assert [name for name, word in words.items() if word in text] == [show]
    assert main(["plot", "x.db", "-o", "y.svg", "--show", "all"]) == 2
    assert "argument --show: invalid choice: 'all'" in capsys.readouterr().err


def test_mixtures_are_refused(record):
    for draw in (sweeps.recovery_figure, sweeps.layers_figure):
        with pytest.raises(ValueError, match="several values of epochs"):
            draw([record(), record(epochs=20)])
        assert draw([record(), record(epochs=20)], by="epochs").legends
