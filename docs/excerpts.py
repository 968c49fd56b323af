"""What docs/comparison keeps of the long runs, from the results.json of each.

python docs/excerpts.py trials runs/digits_trials docs/comparison/trials.json
python docs/excerpts.py halves runs/digits_50 docs/comparison/halves.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vqjax.atomic import to_json
from vqjax.results import summaries


def trials(results):
    """The search and what its nested final runs show, without counts and tables."""
    kept = {name: results[name] for name in ('command', 'environment', 'tuning')}
    return kept | {'outcome': _outcome(results)}


def halves(results):
    """Every method over all deals of the folds, and in each half of them."""
    kept = {name: results[name] for name in ('command', 'environment')}
    return kept | {'outcome': _outcome(results), 'halves': summaries.halves(results)}


def _outcome(results):
    """Of each method runs, accuracy, the difference to the baseline and the verdict on it."""
    methods, outcome = results['methods'], {}
    baseline = methods[summaries.BASELINE]['seeds']
    for name, method in methods.items():
        said = {'runs': len(method['seeds']), 'accuracy': method['summary']['accuracy']}
        if method['spec'] is not None:
            said['spec'] = method['spec']
            said['lowest_perplexity'] = min(seed['perplexity'] for seed in method['seeds'])
        if name != summaries.BASELINE:
            compared = summaries.paired_difference(method['seeds'], baseline, 'accuracy')
            said['compared'] = compared._asdict()
            said['verdict'] = summaries.verdict(compared, len(method['seeds']))
        outcome[name] = said
    return outcome


if __name__ == '__main__':
    what, workdir, target = sys.argv[1:]
    found = json.loads((Path(workdir) / 'results.json').read_text())
    Path(target).write_text(to_json({'trials': trials, 'halves': halves}[what](found)) + '\n')
