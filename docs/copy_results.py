"""Takes over what `make paper` wrote: docs/results.md and its pictures, in 256 colours, in docs/results/.

python docs/copy_results.py paper
"""

import re
import sys
from pathlib import Path

from PIL import Image

paper, docs = Path(sys.argv[1]), Path(__file__).parent
page = (paper / "results.md").read_text(encoding="utf-8")
(docs / "results").mkdir(exist_ok=True)
for name in dict.fromkeys(re.findall(r"\]\((\w[\w-]*\.png)\)", page)):
    with Image.open(paper / name) as picture:
        picture.convert("RGB").quantize(256).save(docs / "results" / name, optimize=True)
(docs / "results.md").write_text(re.sub(r"\]\((\w[\w-]*\.png)\)", r"](results/\1)", page), encoding="utf-8")
