"""What `pip install` gets."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"cmake", "csrc", "pns_fast"}


def test_an_sdist_holds_sources_and_nothing_else(tmp_path):
    pytest.importorskip("scikit_build_core")
    build = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (sdist,) = tmp_path.iterdir()
    with tarfile.open(sdist) as archive:
        files = [Path(*Path(member.name).parts[1:]) for member in archive if member.isfile()]
    assert {f.parts[0] for f in files if len(f.parts) > 1} == FOLDERS
    sources = {f for folder in FOLDERS for f in (ROOT / folder).rglob("*") if f.is_file()}
    expected = {f.relative_to(ROOT) for f in sources if f.suffix not in (".pyc", ".so")}
    assert {f for f in files if f.parts[0] in FOLDERS} == expected
