"""Files that a sweep writes: whole or not there, and never in the place of what is no file."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest
import torch

from pns_fast import nn, sweeps
from pns_fast.sweeps.whole_file import whole_file

CELLS = sweeps.expand(
    "singleshot", ["relu"], ["random"], [0.5], seeds=range(2), depths=[3], widths=[4], n_samples=100, epochs=1
)
WRITERS = {
    "table.csv": lambda store, path: sweeps.write_csv(sweeps.read(store), path),
    "figure.svg": lambda store, path: sweeps.save_figure(sweeps.read(store), path),
    "page.html": lambda store, path: sweeps.save_report(store, path),
}


@pytest.fixture
def store(tmp_path):
    sweeps.run(CELLS, tmp_path / "results.db")
    return tmp_path / "results.db"


@pytest.mark.parametrize("name", WRITERS)
def test_a_pipe_is_written_to(store, tmp_path, name):
    """As /dev/stdout, and as a device, which root could replace by a file."""
    WRITERS[name](store, tmp_path / f"whole_{name}")
    pipe, read = tmp_path / name, []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    WRITERS[name](store, pipe)
    reader.join(timeout=20)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert len(read[0]) == pytest.approx((tmp_path / f"whole_{name}").stat().st_size, rel=0.01)  # an SVG has a date


@pytest.mark.parametrize("name", WRITERS)
def test_a_directory_is_refused_and_nothing_is_left(store, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=f"{name}: is a directory, expected a file"):
        WRITERS[name](store, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == sorted(["results.db", name])


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file(store, tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '.*/{name}'"):
        WRITERS[name](store, tmp_path / name)


def test_errors_that_say_it_by_themselves_stay(tmp_path):
    with pytest.raises(OSError, match=r"^no such encoder$"), whole_file(tmp_path / "a"):
        raise OSError("no such encoder")


def test_a_folder_that_is_read_only_names_the_file(tmp_path, monkeypatch):
    def refuse(self, text):
        raise OSError(errno.EROFS, "Read-only file system", self)

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match=r"a\.csv'$"), whole_file(tmp_path / "a.csv") as part:
        part.write_text("a")


def test_a_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def stop_half_way():
        with whole_file(path) as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        stop_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_masks_do_not_replace_a_device(tmp_path):
    os.mkfifo(tmp_path / "m")
    with pytest.raises(ValueError, match=r"path: expected the name of a file, .* is something else"):
        nn.save_masks({"w": torch.ones(2, dtype=torch.bool)}, tmp_path / "m")
    assert stat.S_ISFIFO((tmp_path / "m").stat().st_mode)
