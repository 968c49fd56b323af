"""What docs/comparison keeps of a long run, from its results.json.

python docs/excerpts.py runs/digits_trials docs/comparison/trials.json
python docs/excerpts.py runs/digits_50 docs/comparison/halves.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from vqjax.atomic import to_json
from vqjax.results.excerpts import Excerpt
from vqjax.results.records import Results

if __name__ == '__main__':
    workdir, target = sys.argv[1:]
    found = Excerpt.of(Results.load(Path(workdir) / 'results.json'))
    Path(target).write_text(to_json(found.plain()) + '\n')
