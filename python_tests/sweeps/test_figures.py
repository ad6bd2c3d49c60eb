"""The figure: what is drawn, on which axes, and into which files."""

import itertools
import struct

import numpy as np
import pytest

from pns_fast import sweeps
from pns_fast.sweeps import figure_style


def test_axes_lines_and_ticket(grid):
    drawn = sweeps.figure(grid)
    assert len(drawn.axes) == 4  # two tasks, strong and weak
    for ax in drawn.axes:
        assert ax.get_xscale() == "log"
        assert [t.get_text() for t in ax.get_xticklabels()] == ["\n★ 0.005", "0.1", "1"]
        np.testing.assert_array_equal(ax.get_xticks(), [0.005, 0.1, 1.0])
    circle_strong, circle_weak, helix_strong, helix_weak = drawn.axes
    assert (circle_weak.get_yscale(), circle_weak.get_ylim()) == ("linear", (0.0, 102.0))
    assert (helix_strong.get_yscale(), helix_weak.get_yscale()) == ("log", "log")
    mean = next(line for line in circle_weak.lines if line.get_color() == figure_style.STYLES["random"][0])
    np.testing.assert_allclose(mean.get_ydata(), [80.0, 80.0, 80.0], rtol=1e-14)
    dashed = next(line for line in circle_strong.lines if line.is_dashed())
    np.testing.assert_allclose(dashed.get_ydata(), [98.0, 98.0], rtol=1e-14)
    star = next(line for line in circle_strong.lines if line.get_marker() == "*")
    np.testing.assert_allclose(star.get_xydata(), [[108 / 20_600, 98.0]], rtol=1e-14)
    assert len(circle_weak.collections) == 2  # a band a pruner


def test_labels_that_would_run_into_each_other_are_left_out(record):
    densities = (0.001, 0.004, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
    ticket = record(density_label="ticket", density=0.0002, ticket_density=0.0002)
    drawn = sweeps.figure([ticket, *(record(density_label=f"{d:g}", density=d) for d in densities)])
    for ax in drawn.axes:
        assert list(ax.get_xticks()) == [0.0002, *densities]  # the ticks stay
        labels = [t.get_text() for t in ax.get_xticklabels()]
        assert labels == ["\n★ 0.0002", "0.001", "", "", "0.01", "", "0.1", "0.5", "1"]
    drawn.draw_without_rendering()
    shown = [t.get_window_extent() for t in drawn.axes[0].get_xticklabels()[1:] if t.get_text()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(shown))


def test_a_ticket_at_another_density_has_both_labels(record):
    drawn = sweeps.figure([record(density_label="ticket", density=0.1), record(density_label="0.1", density=0.1)])
    assert [t.get_text() for t in drawn.axes[0].get_xticklabels()] == ["0.1\n★ 0.1"]


def test_mostly_collapsed_points_are_hollow(record):
    records = [record(seed=s, collapsed=float(s > 0)) for s in range(3)] + [record(density_label="1", density=1.0)]
    ax = sweeps.figure(records).axes[0]
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[0.1]]
    texts = [t.get_text() for t in sweeps.figure(records).legends[0].get_texts()]
    assert texts == ["SNIP", "Planted ticket", "hollow: most networks collapsed"]


def test_every_pruner_has_its_own_colour_and_marker(record):
    names = [
        "random",
        "magnitude",
        "snip",
        "grasp",
        "synflow",
        "force",
        "phew",
        "edge-popup",
        "edge-popup-anneal",
        "new",
        "newer",
    ]
    styles = figure_style.styles(sweeps.panels([record(pruner=name) for name in names]))
    assert set(styles) == set(names)
    assert len(set(styles.values())) == len(names)


def test_png_is_200_dpi_and_not_empty(tmp_path, grid):
    from PIL import Image

    path = tmp_path / "figure.png"
    sweeps.save_figure(grid, path)
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert width == 1400
    assert height > 800
    pixels = np.asarray(Image.open(path).convert("RGB"))
    colours = {tuple(c) for c in pixels.reshape(-1, 3)}
    assert {(0x7F, 0x7F, 0x7F), (0xD6, 0x27, 0x28), (0, 0, 0), (255, 255, 255)} <= colours
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_vector_formats(tmp_path, suffix, start, grid):
    path = tmp_path / f"figure.{suffix}"
    sweeps.save_figure(grid, path)
    assert path.read_bytes().startswith(start)


def test_other_suffixes_are_refused(tmp_path, grid):
    with pytest.raises(ValueError, match=r"figure: expected a file name ending in .png, .pdf, .svg, got"):
        sweeps.save_figure(grid, tmp_path / "figure.gif")
    assert list(tmp_path.iterdir()) == []


def test_variants_of_a_pruner_share_its_colour_and_differ_in_line(record):
    records = [record(rounds=n) for n in (1, 10)]
    styles = figure_style.styles(sweeps.panels(records, by="rounds"))
    assert list(styles) == ["snip, 1 round", "snip, 10 rounds"]
    assert len({style.colour for style in styles.values()}) == 1
    assert len({style.line for style in styles.values()}) == 2
    texts = [t.get_text() for t in sweeps.figure(records, by="rounds").legends[0].get_texts()]
    assert texts[:2] == ["SNIP, 1 round", "SNIP, 10 rounds"]


def test_chosen_axes_have_titles(grid):
    drawn = sweeps.figure(grid, show=[("circle", "strong"), ("circle", "weak"), ("helix", "weak")])
    assert len(drawn.axes) == 3
    titles = [ax.get_title() for ax in drawn.axes if ax.get_title()]
    assert titles == [
        "Circle, after pruning (strong ticket)",
        "Circle, after training (weak ticket)",
        "Helix, after training (weak ticket)",
    ]
