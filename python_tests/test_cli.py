"""The command line, in this process and as a real one."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from pns_fast import sweeps
from pns_fast.cli import main

SMALL = [
    "--task=relu",
    "--depth=3",
    "--width=8",
    "--samples=100",
    "--epochs=1",
    "--seeds=2",
    "--pruner=random,snip",
]
SMALL += ["--density=ticket,0.5"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def error_of(capsys, *argv):
    """The one line on stderr of a call that must fail with exit code 2."""
    assert main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pns-fast: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("pns-fast: error: ").strip()


@pytest.mark.parametrize("command", ["--help", "sweep status s.db"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(here, command, unbuffered):
    main(["sweep", "singleshot", *SMALL, "--store=s.db", "--quiet"])
    reader, writer = os.pipe()
    os.close(reader)
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(
        [sys.executable, "-m", "pns_fast", *command.split()], stdout=writer, stderr=subprocess.PIPE, text=True, env=env
    )
    os.close(writer)
    assert ended.stderr == ""
    assert ended.returncode == (0 if command == "--help" and unbuffered else 1)  # argparse does not mind


def test_an_error_without_stdout_is_told(here):
    shell = f'"{sys.executable}" -m pns_fast sweep status no.db >&-'
    ended = subprocess.run(["sh", "-c", shell], stderr=subprocess.PIPE, text=True)
    assert (ended.stderr, ended.returncode) == ("pns-fast: error: store no.db: no such file\n", 2)


def test_a_sweep_without_stderr_runs(here):
    shell = f'"{sys.executable}" -m pns_fast sweep singleshot {" ".join(SMALL)} --store=s.db 2>&-'
    assert subprocess.run(["sh", "-c", shell], stdout=subprocess.DEVNULL).returncode == 0
    assert set(sweeps.statuses(here / "s.db").values()) == {"ok"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_output_that_cannot_be_written_is_an_error_in_one_line():
    with open("/dev/full", "w") as full:
        command, env = [sys.executable, "-m", "pns_fast", "--help"], {**os.environ, "PYTHONUNBUFFERED": ""}
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert (ended.stderr, ended.returncode) == ("pns-fast: error: [Errno 28] No space left on device\n", 2)


def test_sweep_writes_store_figure_csv_and_table(here, capsys):
    argv = ["sweep", "singleshot", *SMALL, "--store=s.db", "--figure=f.png", "--csv=c.csv", "--threads=1"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert sorted(os.listdir(here)) == ["c.csv", "f.png", "s.db"]
    assert len((here / "c.csv").read_text().splitlines()) == 1 + 8
    assert torch.get_num_threads() == 1
    for shown in (
        "relu depth 3, width 8",
        "random",
        "snip",
        "strong",
        "weak",
        "8: 8 new, 0 stored before, 0 failed",
    ):
        assert shown in out
    header, seconds, percent = (
        next(line.split() for line in out.splitlines() if line.split()[:1] == [name])
        for name in ("sweep", "seconds", "percent")
    )
    assert header[1:] == ["training", "scoring", "planting", "data", "store", "other"]
    assert len(seconds) == len(percent) == 7
    assert sum(map(float, percent[1:])) == pytest.approx(100, abs=0.4)  # each is rounded
    assert "diverged" not in out
    for shown in ("the sweep; besides imports", "figure", "s.db", "f.png", "c.csv"):
        assert shown in out
    assert "singleshot: 8 of 8 cells, 0 failed" in err
    assert main(argv) == 0
    assert "8: 0 new, 8 stored before, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "more", "n_cells"),
    [
        ("multishot", ["--rounds=2", "--round-epochs=1", "--pruner=magnitude"], 4),
        ("multishot", ["--rounds=2", "--round-epochs=1", "--pruner=force", "--rewind=weights", "--rewind-epochs=1"], 4),
        ("singleshot", ["--rounds=2", "--pruner=phew,random", "--scope=erk"], 8),
        ("edge-popup", ["--popup-epochs=1", "--pruner=all"], 8),
    ],
)
def test_other_modes(here, capsys, mode, more, n_cells):
    assert main(["sweep", mode, *SMALL, *more, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert set(sweeps.statuses(f"pns-{mode}.db").values()) == {"ok"}
    assert len(sweeps.read(f"pns-{mode}.db")) == n_cells


def test_seeds_may_start_anywhere(here):
    assert main(["sweep", "singleshot", *SMALL, "--first-seed=7", "--quiet"]) == 0
    assert {r["seed"] for r in sweeps.read("pns-singleshot.db")} == {7, 8}


def test_dry_run_counts_and_makes_nothing(here, capsys):
    assert main(["sweep", "singleshot", "--dry-run"]) == 0
    assert capsys.readouterr().out == "1875 cells: 0 done, 0 failed, 1875 to run\n"
    assert os.listdir(here) == []
    main(["sweep", "singleshot", *SMALL, "--pruner=snip", "--quiet"])
    assert main(["sweep", "singleshot", *SMALL, "--dry-run"]) == 0
    assert capsys.readouterr().out == "8 cells: 4 done, 0 failed, 4 to run\n"


def test_config_round_trip_and_flags_win(here, capsys):
    assert main(["sweep", "multishot", *SMALL, "--lr=0.01", '--store=\N{ROCKET} ü".db', "--print-config"]) == 0
    text = capsys.readouterr().out
    (here / "m.toml").write_text(text, encoding="utf-8")
    assert main(["sweep", "multishot", "--config=m.toml", "--print-config"]) == 0
    assert capsys.readouterr().out == text
    assert 'density = ["ticket", "0.5"]\n' in text
    assert main(["sweep", "multishot", "--config=m.toml", "--seeds=4", "--store=n.db", "--dry-run"]) == 0
    assert capsys.readouterr().out == "16 cells: 0 done, 0 failed, 16 to run\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 3", "config c.toml: unknown option epoch; did you mean epochs?"),
        ("zzz = 3", "config c.toml: unknown option zzz; known are task, "),
        ("epochs = 'many'", "config c.toml: argument --epochs: invalid int value: 'many'"),
        ("epochs = true", "config c.toml: epochs: expected a string, a number or a list, got True"),
        ("seeds = [", "config c.toml: not TOML ("),
    ],
)
def test_wrong_config(here, capsys, content, message):
    (here / "c.toml").write_text(content)
    assert error_of(capsys, "sweep", "singleshot", "--config=c.toml", "--dry-run").startswith(message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["prune"], "argument COMMAND: invalid choice: 'prune'"),
        (["sweep"], "the following arguments are required: MODE"),
        (["sweep", "singleshot", "--epoch=3"], "unrecognized arguments: --epoch=3"),
        (["sweep", "singleshot", "--round-epochs=3"], "unrecognized arguments: --round-epochs=3"),
        (
            ["sweep", "singleshot", "--task=spiral"],
            "task: expected one of circle, relu, helix, all, got 'spiral'",
        ),
        (["sweep", "singleshot", "--pruner=l1"], "pruner: expected one of random, "),
        (
            ["sweep", "singleshot", "--density=2"],
            "argument --density: expected 'ticket' or a number in (0, 1]",
        ),
        (
            ["sweep", "singleshot", "--depth=five"],
            "argument --depth: expected ints apart by commas, got 'five'",
        ),
        (["sweep", "singleshot", "--depth=2"], "depths: expected an integer of at least 3, got 2"),
        (
            ["sweep", "singleshot", "--width=10"],
            "widths: the circle ticket of depth 5 needs width 20, got 10",
        ),
        (["sweep", "singleshot", "--seeds=0"], "argument --seeds: expected at least 1, got 0"),
        (["sweep", "singleshot", "--first-seed=-1"], "seeds: expected an integer of at least 0, got -1"),
        (["sweep", "singleshot", "--scope=filter"], "scope: expected one of global, layer, erk, got 'filter'"),
        (["sweep", "singleshot", "--rewind=init"], "unrecognized arguments: --rewind=init"),
        (["sweep", "multishot", "--rewind=late"], "rewind: expected one of init, weights, learning-rate, got 'late'"),
        (["sweep", "multishot", "--rewind-epochs=2"], "rewind_epochs: expected at most 0 for rewind 'init'"),
        (["sweep", "singleshot", "--threads=0"], "argument --threads: expected at least 1, got 0"),
        (["sweep", "singleshot", "--chunk=0"], "chunk: expected a positive integer or None, got 0"),
        (["sweep", "singleshot", "--device=gpu"], "argument --device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["reproduce", "fig3", "--device=cuda:"], "argument --device: expected auto, cpu, cuda or cuda:N"),
        (["theory", "--task=spiral"], "name: expected one of circle, relu, helix, got 'spiral'"),
        (["theory", "--task=circle", "--width=9"], "widths: expected 5 layers, 2 inputs and no layer narrower than"),
        (["theory", "--eps=0"], "eps: expected a finite number > 0, got 0.0"),
        (["theory", "--probability=1"], "probability: expected a number above 0 and below 1, got 1.0"),
        (["theory", "--init=he"], "init: expected one of normal, uniform, he_scaled, got 'he'"),
        (["theory", "--simulate=0"], "argument --simulate: expected at least 1, got 0"),
        (["theory", "--figure=f.txt"], "figure: expected a file name ending in .png, .pdf, .svg, got 'f.txt'"),
        (["plant", "--device=tpu"], "argument --device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["sweep", "singleshot", "--epochs=x"], "argument --epochs: invalid int value: 'x'"),
        (
            ["sweep", "singleshot", "--store=no/s.db"],
            "store no/s.db: cannot be written (No such file or directory)",
        ),
        (
            ["sweep", "singleshot", "--figure=f.gif"],
            "figure: expected a file name ending in .png, .pdf, .svg",
        ),
        (["sweep", "singleshot", "--figure=no/f.png"], "figure no/f.png: there is no directory no"),
        (["sweep", "singleshot", "--csv=no/c.csv"], "csv no/c.csv: there is no directory no"),
        (["sweep", "singleshot", "--config=no.toml"], "[Errno 2] No such file or directory: 'no.toml'"),
        (["plot", "no.db", "-o", "f.png"], "store no.db: no such file"),
        (["plot", "text.db", "-o", "f.png"], "store text.db: not an SQLite database"),
        (["plot", "text.db"], "the following arguments are required: -o/--figure"),
        (["plant", "--task=spiral"], "name: expected one of circle, relu, helix, got 'spiral'"),
        (
            ["plant", "--width=10"],
            "ticket: layer 3 is wider than the mother network's, 20 neurons against 10",
        ),
        (["plant", "--out=no/p.pt"], "--out no/p.pt: there is no directory no"),
        (["plant", "--out="], "argument --out: expected a name, got ''"),
        (["plot", "text.db", "-o", ""], "argument -o/--figure: expected a name, got ''"),
        (["report", "text.db", "-o", ""], "argument -o/--output: expected a name, got ''"),
        (["theory", "--figure="], "argument --figure: expected a name, got ''"),
        (["reproduce", "fig3", "--out="], "argument --out: expected a name, got ''"),
        (["sweep", "merge", "text.db", "--out="], "argument -o/--out: expected a name, got ''"),
        *(
            (["sweep", "singleshot", f"--{option}="], f"argument --{option}: expected a name, got ''")
            for option in ("store", "figure", "csv", "config", "scheduler")
        ),
        (["plant", "--depth=1000000000"], "depth: expected at most 1000 neuron layers, got 1000000000"),
        (["plant", f"--width={10**30}"], "widths, n: 1 network of 2e+60 parameters need 3.725e+52 GiB of memory"),
        (["plant", "--seeds=1000000000"], "argument --seeds: expected at most 100000, got 1000000000"),
        (["reproduce", "fig3", f"--seeds={2**63}"], f"argument --seeds: expected at most 100000, got {2**63}"),
        (["reproduce", "fig5", f"--seeds={2**63}"], f"argument --seeds: expected at most 100000, got {2**63}"),
        (["theory", "--depth=1000000000"], "depth: expected at most 1000 neuron layers, got 1000000000"),
        (["theory", "--width=10000000", "--simulate=1"], "widths, n: 1 network of 3e+14 parameters need 5.588e+06 GiB"),
        (["theory", f"--simulate={2**63}", "--seed=1"], f"n: expected seeds below 2**63, got {2**63} networks from"),
        (["sweep", "singleshot", f"--depth={2**31}"], f"depths: expected an integer of at most {2**31 - 1}, got"),
        (["sweep", "singleshot", f"--epochs={10**30}"], f"epochs: expected an integer of at most {2**31 - 1}, got"),
        (["sweep", "singleshot", "--seeds=1000000000"], "argument --seeds: expected at most 100000, got 1000000000"),
        (["sweep", "singleshot", f"--first-seed={2**63}"], f"seeds: expected an integer of at most {2**63 - 1}, got"),
        (["sweep", "singleshot", f"--threads={2**63}"], f"argument --threads: expected at most 4096, got {2**63}"),
    ],
)
def test_errors_are_one_line(here, capsys, argv, message):
    (here / "text.db").write_text("no database" * 10)
    assert error_of(capsys, *argv).startswith(message)
    assert os.listdir(here) == ["text.db"]
    assert (here / "text.db").read_text() == "no database" * 10


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is not enough memory"),
        (MemoryError("Unable to\nallocate 7.45 GiB"), "Unable to allocate 7.45 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: can't allocate memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory."),
    ],
)
def test_memory_that_is_not_there_is_one_line(capsys, monkeypatch, error, message):
    def evaluate(*_, **__):
        raise error

    monkeypatch.setattr("pns_fast.sweeps.theory.evaluate", evaluate)
    assert error_of(capsys, "theory") == message
    error = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        main(["theory"])


def test_failed_cells_are_told_and_retried(here, capsys, monkeypatch):
    from pns_fast import pruners

    score = pruners.score

    def failing_score(population, name, batch, loss, seeds):
        if name == "snip" and 1 in seeds:
            raise FloatingPointError("scores of seed 1")
        return score(population, name, batch, loss, seeds)

    monkeypatch.setattr(pruners, "score", failing_score)
    argv = ["sweep", "singleshot", *SMALL, "--store=s.db"]
    assert main([*argv, "--figure=f.png"]) == 1
    out, err = capsys.readouterr()
    assert "8: 6 new, 0 stored before, 2 failed" in out
    assert "2 failed: FloatingPointError: scores of seed 1\n" in err
    assert "--retry-failed" in err
    assert (here / "f.png").exists()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main(argv) == 1
    assert "8: 0 new, 8 stored before, 2 failed" in capsys.readouterr().out
    assert main([*argv, "--retry-failed"]) == 0
    assert "8: 2 new, 6 stored before, 0 failed" in capsys.readouterr().out


def test_diverged_networks_are_counted(here, capsys):
    argv = ["sweep", "singleshot", *SMALL, "--density=1", "--pruner=random", "--lr=1e30", "--figure=f.png"]
    for expected in (
        "2: 2 new, 0 stored before, 0 failed, 2 diverged",
        "2: 0 new, 2 stored before, 0 failed, 2 diverged",
    ):
        assert main(argv) == 0
        assert expected in capsys.readouterr().out


def test_ctrl_c_says_how_to_resume(here, capsys, monkeypatch):
    from contextlib import contextmanager

    from pns_fast.sweeps import progress

    @contextmanager
    def interrupting(title, quiet):
        yield lambda report: signal.raise_signal(signal.SIGINT) if report.n_ok == 4 else None

    argv = ["sweep", "singleshot", *SMALL, "--store=s.db"]
    with monkeypatch.context() as patch:
        patch.setattr(progress, "shown", interrupting)
        assert main([*argv, "--chunk=2"]) == 130
    assert capsys.readouterr().err == "stopped: 4 of 8 cells are in s.db; the same command goes on from there\n"
    assert main(argv) == 0
    assert "8: 4 new, 4 stored before, 0 failed" in capsys.readouterr().out


def test_plot_draws_and_filters(here, capsys):
    for depth in (3, 4):
        assert main(["sweep", "singleshot", *SMALL, f"--depth={depth}", "--store=s.db", "--quiet"]) == 0
    assert main(["sweep", "singleshot", *SMALL, "--epochs=0", "--store=s.db", "--quiet"]) == 0
    assert "several values of epochs (" in error_of(capsys, "plot", "s.db", "-o", "f.png")
    assert main(["plot", "s.db", "-o", "f.svg", "--csv=c.csv", "--where=epochs=1", "--where", "depth=4"]) == 0
    assert "relu depth 4" in capsys.readouterr().out
    assert (here / "f.svg").exists()
    assert len((here / "c.csv").read_text().splitlines()) == 1 + 8
    assert error_of(capsys, "plot", "s.db", "-o", "f.png", "--where=dept=4").startswith("--where: expected NAME=VALUE")
    assert (
        error_of(capsys, "plot", "s.db", "-o", "f.png", "--where=depth=x")
        == "--where: depth is a number, got 'depth=x'"
    )
    assert "no finished cells that match" in error_of(capsys, "plot", "s.db", "-o", "f.png", "--where=depth=9")


def test_plant_is_exact_and_saved(here, capsys):
    assert main(["plant", "--task=circle", "--seeds=2", "--out=p.pt"]) == 0
    out = capsys.readouterr().out
    assert out.count(" 108 ") == 2
    assert "0.005243" in out
    saved = torch.load("p.pt", weights_only=True)
    assert (saved["task"], saved["seeds"], saved["widths"]) == ("circle", [0, 1], (2, 100, 100, 100, 4))
    assert sum(int(m.sum()) for m in saved["mask_weights"]) == 2 * 108


def test_plant_that_cannot_be_saved_is_an_error_in_one_line(here, capsys):
    (here / "p.pt").mkdir()
    assert main(["plant", "--task=relu", "--out=p.pt"]) == 2
    assert capsys.readouterr().err == "pns-fast: error: p.pt: is a directory, expected a file\n"
    assert main(["plant", "--task=relu", "--out=/dev/full"]) == 2
    assert capsys.readouterr().err == "pns-fast: error: [Errno 28] No space left on device: '/dev/full'\n"


@pytest.mark.parametrize("option", ["--figure", "--csv"])
def test_a_directory_that_cannot_be_written_to_is_told_before_the_work(here, capsys, monkeypatch, option):
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "locked")
    (here / "locked").mkdir()
    expected = f"{option[2:]} locked/f.png: directory locked cannot be written to"
    assert error_of(capsys, "sweep", "singleshot", *SMALL, "--store=s.db", f"{option}=locked/f.png") == expected
    assert not (here / "s.db").exists()


def test_plant_that_is_not_exact_fails(capsys, monkeypatch):
    from pns_fast.sweeps import planted

    monkeypatch.setattr(planted, "TOLERANCE", 0.0)
    assert main(["plant", "--task=helix"]) == 1
    assert "not exact" in capsys.readouterr().out


def test_theory(here, capsys):
    argv = ["theory", "--task=relu", "--depth=3", "--eps=0.9", "--width=10,40", "--simulate=50", "--figure=t.pdf"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    for shown in ("relu ticket (1, 1, 1)", "width needed for probability 0.9: 15 in every layer", "1, 2", "±", "t.pdf"):
        assert shown in out
    assert os.listdir(here) == ["t.pdf"]
    assert main(["theory", "--task=circle", "--norm=spectral", "--init=normal", "--output=trained"]) == 0
    out = capsys.readouterr().out
    assert "largest singular value" in out
    assert "the last one trained" in out
    assert "±" not in out


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"torch         {torch.__version__}" in out
    assert "kernels, cpu" in out


def test_as_a_process():
    run = {"capture_output": True, "text": True}
    module = [sys.executable, "-m", "pns_fast"]
    times = []
    for _ in range(3):  # the best of three: other processes share the machine
        begin = time.perf_counter()
        assert "usage: pns-fast" in subprocess.run([*module, "--help"], **run, check=True).stdout
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.3
    script = "import sys; from pns_fast.cli import main\ntry: main(['sweep', 'singleshot', '--help'])\n"
    script += "except SystemExit: print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    lazy = subprocess.run([sys.executable, "-c", f"import sys; sys.argv[0] = 'pns-fast'\n{script}"], **run)
    assert lazy.stdout.endswith("False False\n")
    failed = subprocess.run([*module, "plot", "no.db", "-o", "f.png"], **run)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "pns-fast: error: store no.db: no such file\n"


def test_tables_and_any_encoding_of_the_output():
    run = {"capture_output": True, "env": {**os.environ, "PYTHONIOENCODING": "ascii"}}
    theory = [sys.executable, "-m", "pns_fast", "theory", "--task=relu", "--depth=4", "--simulate=2", "--width=4"]
    found = subprocess.run(theory, **run)
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"parameters k" in found.stdout  # a header of a table wider than 80
    assert b"\\xb1" in found.stdout  # plus or minus
