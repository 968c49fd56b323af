"""What docs keeps of a long run: its results.json without counts and tables.

python docs/excerpts.py runs/digits_trials docs/comparison/trials.json
python docs/excerpts.py runs/digits_50 docs/comparison/deals.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from vqjax.atomic import to_json
from vqjax.results.records import Results
from vqjax.results.summaries import shorten

if __name__ == '__main__':
    workdir, target = sys.argv[1:]
    results = Results.load(Path(workdir) / 'results.json')
    Path(target).write_text(to_json(shorten(results).plain()) + '\n')
