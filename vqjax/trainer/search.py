"""Equal tuning: as many random trials for every method, a choice on validation, the final runs.

WORKDIR/search holds the trials, an experiment whose runs end on the validation split; its data have
no test split. WORKDIR/test_opened.json is written when all are chosen and before the test split is
read, with the time and what was chosen: from then on nothing is searched there. WORKDIR/final holds
the runs of the chosen settings, an experiment as well, and WORKDIR the results of both.

Where folds are in turn the search is nested: every fold tries all settings on its own training and
validation parts, and its test part is told by the setting that these chose.
"""

import dataclasses
import datetime
import operator
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from vqjax.results.entries import entry
from vqjax.trainer import experiment
from vqjax.trainer.config.settings import Parts, Settings, check, fold_of
from vqjax.trainer.config.space import Trial, best, make_trials, mean
from vqjax.trainer.errors import DivergedRun, RunError
from vqjax.trainer.experiment import Wanted
from vqjax.trainer.files.workdir import Workdir, read_json
from vqjax.trainer.run.processes import agree, on_first_process

OPENED = 'test_opened.json'

Results = dict[str, Any]
Trials = dict[str, list[Trial]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a study reads of finished runs: the part of a `Workdir` that it needs.

    runs: (method, seed) -> record of the finished run, whatever its name in WORKDIR/final.
    """

    path: pathlib.Path
    runs: Mapping[tuple[str, int], dict[str, Any]]

    def finished(self, method: str, seed: int) -> dict[str, Any]:
        """The outcome of one run."""
        return self.runs[method, seed]


def run(
    config: dict[str, Any],
    workdir: str,
    conclude: Callable[[Results, Outcome], None],
    parts: Parts = Parts(),  # noqa: B008
) -> Results:
    """Searches settings for every method, and runs the chosen ones; resumable at any point.

    Args:
      config: plain data with `trials` above 0 and a `space`.
      workdir: folder of it all.
      parts: as for `experiment.run`.
      conclude: as for `experiment.run`, told of the final runs under the names of the methods.

    Returns:
      The content of results.json: that of the final runs, and `tuning`: the space, every trial
      with its scores, which was chosen for each seed, and which is best on average.

    Raises:
      RunError: the space is wrong, a trial is no quantizer, all trials of a method diverged, or
        what `experiment.run` refuses.
      Stopped: as `experiment.run`.
    """
    settings = check(config, parts)
    trials = make_trials(settings.config, settings.methods)
    searched = _search_config(settings, trials)
    _check_trials(searched, trials, parts)
    settings, own = experiment.open_data(settings, parts.dataset)
    searched |= {name: settings.config[name] for name in ('dataset', 'data_digest')}
    parts = parts._replace(dataset=own)
    folder = on_first_process(lambda: Workdir(workdir, settings.config))
    path = pathlib.Path(workdir)
    try:
        opened = agree(on_first_process(lambda: _opened(path)))
        if opened is None:
            results = _search(searched, trials, path / 'search', parts)
            opened = agree(on_first_process(lambda: _open(folder, settings, trials, results)))
        return _final(settings, trials, opened, folder, path, conclude, parts)
    finally:
        if folder is not None:
            if not (path / 'search').exists():
                folder.discard()
            folder.close()


def _opened(path: pathlib.Path) -> dict[str, Any] | None:
    """What test_opened.json says, where the test split has been opened."""
    file = path / OPENED
    if not file.exists():
        return None
    return read_json(file, 'choose another --workdir; the test split was opened for this one')


def _open(folder: Workdir, settings: Settings, trials: Trials, results: Results) -> dict[str, Any]:
    """Chooses, and writes down that the test split is to be opened."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    opened = {'time': now, 'tuning': _record(settings, trials, results)}
    folder.write_json(OPENED, opened)
    return opened


def _in_turn(settings: Settings) -> bool:
    return fold_of(settings.config, 0) is not None


def _search_config(settings: Settings, trials: Trials) -> dict[str, Any]:
    """The trials as the methods of one experiment that leaves the test split unread."""
    every = [trial for own in trials.values() for trial in own]
    return settings.config | {
        'split': 'validation',
        'trials': 0,
        'space': {},
        'quantizers': {trial.name: trial.spec for trial in every},
        'overrides': {trial.name: trial.overrides for trial in every},
        'methods': 'all',
        'seeds': settings.seeds if _in_turn(settings) else settings.trial_seeds,
        'writers': '',
        'keep_checkpoints': 1,
    }


def _check_trials(searched: Mapping[str, Any], trials: Trials, parts: Parts) -> None:
    """Checks that every trial is a method that can be run, before the first one is."""
    for own in trials.values():
        for trial in own:
            try:
                checked = check(dict(searched) | {'methods': trial.name}, parts)
            except RunError as error:
                raise RunError(f'space.{trial.method}: {_named(trial)}: {error}') from error
            if not checked.methods[trial.name].classification_weight:
                raise RunError(
                    f'classification_weight of {trial.method} is 0, and trials are chosen by '
                    'accuracy: set it above 0, or trials to 0'
                )


def _named(trial: Trial) -> str:
    said = ', '.join(f'{path} {value}' for path, value in trial.settings.items())
    return f'trial {trial.name} ({said})'


def _search(searched: dict[str, Any], trials: Trials, path: pathlib.Path, parts: Parts) -> Results:
    """The results of all trials, without the runs that diverged."""
    every = {trial.name: trial for own in trials.values() for trial in own}
    wanted = {name: list(range(searched['seeds'])) for name in every}
    while True:
        try:
            return experiment.run(searched, str(path), _tidy, parts, wanted)
        except DivergedRun as diverged:  # a bad setting, which is an answer too
            wanted[diverged.method].remove(diverged.seed)
        except RunError as error:
            trial = every.get(str(error).split(' seed ')[0])
            raise RunError(f'{_named(trial)}: {error}' if trial else str(error)) from error


def _tidy(_: Results, folder: Workdir) -> None:
    """Checkpoints of trials are of no use once all have been run."""
    shutil.rmtree(folder.path / 'checkpoints', ignore_errors=True)


def _record(settings: Settings, trials: Trials, results: Results) -> dict[str, Any]:
    """Space, trials with their scores, and the choice of every method."""
    seeds, methods = results['config']['seeds'], {}
    for method, own in trials.items():
        said = [{'settings': t.settings} | _scores(results, t.name, seeds) for t in own]
        chosen, together = _choose(settings, method, said)
        methods[method] = {'trials': said, 'chosen': chosen, 'together': together}
    return {
        'trials': settings.trials,
        'seeds': seeds,
        'nested': _in_turn(settings),
        'space': settings.space,
        'methods': methods,
    }


def _scores(results: Results, name: str, seeds: int) -> dict[str, list[float | None]]:
    """Validation figures of a trial by seed, None for one that diverged."""
    found = results['methods'].get(name, {'seeds': []})['seeds']
    by_seed = {seed['seed']: seed for seed in found}
    return {
        metric: [by_seed.get(seed, {}).get(metric) for seed in range(seeds)]
        for metric in ('accuracy', 'nll')
    }


def _choose(
    settings: Settings, method: str, trials: list[dict[str, Any]]
) -> tuple[list[int], int | None]:
    """The trial that every seed of the final runs takes, and the one that is best on average.

    They are one, but where each fold takes its own; None where every trial diverged on some fold.
    """

    def column(of: Callable[[list[float | None]], float | None]) -> list[list[float | None]]:
        return [[of(trial[metric]) for trial in trials] for metric in ('accuracy', 'nll')]

    together = best(*column(mean))
    found = [together] * settings.seeds
    if _in_turn(settings):
        found = [best(*column(operator.itemgetter(seed))) for seed in range(settings.seeds)]
    chosen = [index for index in found if index is not None]
    if len(chosen) < len(found):
        raise RunError(
            f'space.{method}: all {len(trials)} trials diverged, so there is none to choose: '
            'lower learning_rate there, or give more trials'
        )
    return chosen, together


def _final(
    settings: Settings,
    trials: Trials,
    opened: Mapping[str, Any],
    folder: Workdir | None,
    path: pathlib.Path,
    conclude: Callable[[Results, Outcome], None],
    parts: Parts,
) -> Results:
    """Runs what was chosen and writes the results of search and final runs together."""
    tuning = opened['tuning']
    chosen = {method: said['chosen'] for method, said in tuning['methods'].items()}
    finals: dict[str, Trial] = {}
    wanted: dict[str, list[int]] = {}
    for method, indices in chosen.items():
        for seed, index in enumerate(indices):
            trial = trials[method][index]
            name = method if len(set(indices)) == 1 else trial.name
            finals[name] = trial
            wanted.setdefault(name, []).append(seed)
    config = settings.config | {
        'trials': 0,
        'space': {},
        'quantizers': {name: trial.spec for name, trial in finals.items()},
        'overrides': {name: trial.overrides for name, trial in finals.items()},
        'methods': 'all',
    }
    merged: Results = {}

    def merge(results: Results, final: Workdir) -> None:
        merged.update(_merged(settings, results, final, finals, wanted))
        merged['tuning'] = dict(tuning) | {'test_opened': opened['time']}
        runs = {
            (finals[name].method, seed): final.finished(name, seed)
            for name, seeds in wanted.items()
            for seed in seeds
        }
        conclude(merged, Outcome(path, runs))
        if folder is not None:
            folder.write_json('results.json', merged)

    experiment.run(config, str(path / 'final'), merge, parts, wanted)
    return merged


def _merged(
    settings: Settings,
    results: Results,
    final: Workdir,
    finals: Mapping[str, Trial],
    wanted: Wanted,
) -> Results:
    """Results of the final runs under the names of the methods, the seeds in order."""
    methods = {}
    for method, own in settings.methods.items():
        names = [name for name, trial in finals.items() if trial.method == method]
        placed = sorted((seed, name) for name in names for seed in wanted[name])
        spec, overrides = settings.quantizers[method], settings.overrides.get(method, {})
        if len(names) == 1:  # one setting for all, else the trials tell
            said = results['methods'][names[0]]
            spec, overrides = said['spec'], said['overrides']
        runs = [final.finished(name, seed) for seed, name in placed]
        methods[method] = entry(runs, spec, overrides, own.classification_weight > 0)
    findings = [f | {'method': finals[f['method']].method} for f in results['findings']]
    return results | {'config': settings.config, 'methods': methods, 'findings': findings}
