"""results.json as a typed object: what it reads it writes again, and what it refuses it names."""

import json

import pytest
from support import ROOT

from vqjax.results.finished import FinishedRun
from vqjax.results.records import Results

# Those beside the pages are settings, and docs/answer/dimensions.py writes rows of its own.
COMMITTED = sorted(set(ROOT.glob('docs/*/**/*.json')) - {ROOT / 'docs/answer/dimensions.json'})


def in_short(path):
    return str(path.relative_to(ROOT / 'docs').with_suffix(''))


@pytest.mark.parametrize('path', COMMITTED, ids=in_short)
def test_what_is_read_is_written_again(path):
    """Every committed file, of this version and of those before it."""
    kept = json.loads(path.read_text())
    assert Results.load(path).plain() == kept


@pytest.fixture(scope='module')
def kept():
    """Plain results with codes, folds and tables."""
    return json.loads((ROOT / 'docs' / 'comparison' / 'results.json').read_text())


def changed(plain, path, value):
    """The same with another value at a path; without the entry for None."""
    plain = json.loads(json.dumps(plain))
    *parents, last = path
    part = plain
    for name in parents:
        part = part[name]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return plain


SEED = ('methods', 'fsq', 'seeds', 2)


@pytest.mark.parametrize(
    'path, value, said',
    [
        (('schema',), 2, 'its schema is 2, not 1'),
        (('schema',), None, 'its schema is None, not 1'),
        (('config',), None, 'it has no config'),
        (('methods',), [], r'methods is \[\], not a mapping'),
        (('methods', 'fsq'), 3, 'method fsq: fsq is 3, not a mapping'),
        (('methods', 'fsq', 'bits'), 'many', "method fsq: bits is 'many', not a number"),
        (('methods', 'fsq', 'params'), 1.5, 'method fsq: params is 1.5, not a whole number'),
        (('methods', 'fsq', 'summary', 'nll', 'low'), None, 'fsq: summary: nll: it has no low'),
        (('methods', 'fsq', 'seeds'), {}, 'method fsq: seeds is {}, not a list'),
        (SEED, 'x', "method fsq: seeds holds 'x', which is no mapping"),
        ((*SEED, 'seed'), None, 'method fsq: entry 2 of seeds: it has no seed'),
        ((*SEED, 'accuracy'), 'high', "entry 2 of seeds: accuracy is 'high', which is no number"),
        ((*SEED, 'accuracy'), True, 'entry 2 of seeds: accuracy is True, which is no number'),
        ((*SEED, 'fold', 'test'), None, 'entry 2 of seeds: fold: it has no test'),
        ((*SEED, 'counts', 'uses'), [1], 'entry 2 of seeds: counts of seed 2 are damaged'),
        ((*SEED, 'correct', 'bits'), '?', 'entry 2 of seeds: correct of seed 2 is damaged'),
        ((*SEED, 'reliability', 'count'), [1], 'reliability: .* are not equally long'),
        (('findings',), [{'name': 'collapse'}], 'findings: it has no evidence'),
        (('tuning',), {'trials': 2}, 'tuning: it has no methods'),
    ],
)  # fmt: skip
def test_a_damaged_part_is_named_with_its_file_and_the_remedy(kept, tmp_path, path, value, said):
    file = tmp_path / 'results.json'
    file.write_text(json.dumps(changed(kept, path, value)))
    with pytest.raises(ValueError, match=said) as error:
        Results.load(file)
    assert f'{file} is damaged (' in str(error.value) and '\n' not in str(error.value)
    assert 'run the same command again' in str(error.value)


@pytest.mark.parametrize('content', ['', '{"cut', '[]', 'null', '{}', '{"schema": 1}'])
@pytest.mark.parametrize('kind', [Results, FinishedRun])
def test_an_empty_cut_or_foreign_file_is_named(kind, content, tmp_path):
    file = tmp_path / 'some.json'
    file.write_text(content)
    with pytest.raises(ValueError, match='some.json is damaged .*: '):
        kind.load(file)


def test_a_trial_that_there_is_not_cannot_be_chosen():
    path = ROOT / 'docs' / 'comparison' / 'trials.json'
    plain = json.loads(path.read_text())
    damaged = changed(plain, ('tuning', 'methods', 'fsq', 'together'), 24)
    with pytest.raises(ValueError, match='tuning: method fsq: trial 24 is chosen, and there are'):
        Results.read(damaged)
