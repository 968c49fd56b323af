"""What docs keeps of a long run, from its results.json.

python docs/excerpts.py runs/digits_trials docs/comparison/trials.json
python docs/excerpts.py runs/digits_50 docs/comparison/deals.json      # with its runs
"""

from __future__ import annotations

import sys
from pathlib import Path

from vqjax.atomic import to_json
from vqjax.results.excerpts import Excerpt
from vqjax.results.records import Results
from vqjax.results.summaries import shorten

WITHOUT_RUNS = ('trials.json',)

if __name__ == '__main__':
    workdir, target = sys.argv[1:]
    results = Results.load(Path(workdir) / 'results.json')
    kept = Excerpt.of(results) if Path(target).name in WITHOUT_RUNS else shorten(results)
    Path(target).write_text(to_json(kept.plain()) + '\n')
