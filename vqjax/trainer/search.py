"""Equal tuning: as many random trials for every method, a choice on validation, the final runs.

WORKDIR/search holds the trials, an experiment whose runs end on the validation split; its data have
no test split. WORKDIR/test_opened.json is written when all are chosen and before the test split is
read, with the time and what was chosen: from then on nothing is searched there. WORKDIR/final holds
the runs of the chosen settings, an experiment as well, and WORKDIR the results of both.

Where folds are in turn the search is nested: every fold tries all settings on its own training and
validation parts, and its test part is told by the setting that these chose.
"""

from __future__ import annotations

import dataclasses
import datetime
import operator
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from vqjax.results.entries import entry
from vqjax.results.finished import FinishedRun
from vqjax.results.plain import load, part
from vqjax.results.records import Results, SeedResult
from vqjax.results.tuning import MethodTuning, Scores, TrialScores, Tuning
from vqjax.trainer import experiment
from vqjax.trainer.config.settings import Parts, Settings, check, fold_of
from vqjax.trainer.config.space import Trial, best, make_trials, mean
from vqjax.trainer.errors import DivergedRun, RunError
from vqjax.trainer.files.workdir import Workdir
from vqjax.trainer.run.processes import agree, on_first_process

OPENED = 'test_opened.json'

Trials = dict[str, list[Trial]]


@dataclasses.dataclass(frozen=True)
class Opened:
    """What test_opened.json says.

    time: when the test split was opened; tuning: what had been chosen by then.
    """

    time: str
    tuning: Tuning

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Opened:
        """Of the content of the file.

        Raises:
          ValueError: a part is missing or damaged.
        """
        return cls(part(plain, 'time', str), Tuning.read(part(plain, 'tuning', dict)))

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {'time': self.time, 'tuning': self.tuning.plain()}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a study reads of finished runs: the part of a `Workdir` that it needs.

    runs: (method, seed) -> record of the finished run, whatever its name in WORKDIR/final.
    """

    path: pathlib.Path
    runs: Mapping[tuple[str, int], FinishedRun]

    def finished_run(self, method: str, seed: int) -> FinishedRun:
        """The outcome of one run."""
        return self.runs[method, seed]


Conclude = Callable[[Results, Outcome], Results]


def run(
    config: dict[str, Any],
    workdir: str,
    conclude: Conclude,
    parts: Parts = Parts(),  # noqa: B008
) -> dict[str, Any]:
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
        opened = _agree(lambda: _opened(path, settings, trials))
        if opened is None:
            found = _search(searched, trials, path=path / 'search', parts=parts)
            opened = _agree(lambda: _open(folder, settings, trials=trials, results=found))
        results = _final(
            settings,
            trials,
            opened,
            folder=folder,
            path=path,
            conclude=conclude,
            parts=parts,
        )
        return {} if results is None else results.plain()
    finally:
        if folder is not None:
            if not (path / 'search').exists():
                folder.discard()
            folder.close()


def _agree(make: Callable[[], Opened | None]) -> Any:
    """What make() gives on the first process, on every process."""
    made = on_first_process(make)
    told = agree(None if made is None else made.plain())
    return None if told is None else Opened.read(told)


def _opened(path: pathlib.Path, settings: Settings, trials: Trials) -> Opened | None:
    """What test_opened.json says, where the test split has been opened."""
    file = path / OPENED
    if not file.exists():
        return None

    def read(plain: Mapping[str, Any]) -> Opened:
        opened = Opened.read(plain)
        told = {name: (len(x.trials), len(x.chosen)) for name, x in opened.tuning.methods.items()}
        if told != {name: (len(own), settings.seeds) for name, own in trials.items()}:
            raise ValueError('it is of other methods, trials or seeds')
        return opened

    try:
        remedy = 'choose another --workdir; the test split was opened for this one'
        return load(file, read, remedy)
    except ValueError as error:
        raise RunError(str(error)) from error


def _open(
    folder: Workdir, settings: Settings, trials: Trials, results: Results | None
) -> Opened | None:
    """Chooses, and writes down that the test split is to be opened."""
    if results is None:
        return None
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    opened = Opened(now, _record(settings, trials, results))
    folder.write_json(OPENED, opened.plain())
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


def _search(
    searched: dict[str, Any], trials: Trials, path: pathlib.Path, parts: Parts
) -> Results | None:
    """The results of all trials, without the runs that diverged."""
    every = {trial.name: trial for own in trials.values() for trial in own}
    wanted = {name: list(range(searched['seeds'])) for name in every}
    while True:
        try:
            return experiment.execute(
                searched, str(path), conclude=_tidy, parts=parts, wanted=wanted
            )
        except DivergedRun as diverged:  # a bad setting, which is an answer too
            wanted[diverged.method].remove(diverged.seed)
        except RunError as error:
            trial = every.get(str(error).split(' seed ')[0])
            raise RunError(f'{_named(trial)}: {error}' if trial else str(error)) from error


def _tidy(results: Results, folder: Workdir) -> Results:
    """Checkpoints of trials are of no use once all have been run."""
    shutil.rmtree(folder.path / 'checkpoints', ignore_errors=True)
    return results


def _record(settings: Settings, trials: Trials, results: Results) -> Tuning:
    """Space, trials with their scores, and the choice of every method."""
    seeds, methods = results.config['seeds'], {}
    for method, own in trials.items():
        said = tuple(_scores(results, trial, seeds) for trial in own)
        methods[method] = _choose(settings, method, said)
    return Tuning(
        trials=settings.trials,
        seeds=seeds,
        nested=_in_turn(settings),
        space=settings.space,
        methods=methods,
    )


def _scores(results: Results, trial: Trial, seeds: int) -> TrialScores:
    """Validation figures of a trial by seed, None for one that diverged."""
    found: dict[int, SeedResult] = {}
    if trial.name in results.methods:
        found = {seed.seed: seed for seed in results.methods[trial.name].seeds}

    def column(metric: str) -> Scores:
        return tuple(found[i].figures.get(metric) if i in found else None for i in range(seeds))

    return TrialScores(trial.settings, accuracy=column('accuracy'), nll=column('nll'))


def _choose(settings: Settings, method: str, trials: tuple[TrialScores, ...]) -> MethodTuning:
    """The trial that every seed of the final runs takes, and the one that is best on average.

    They are one, but where each fold takes its own; None where every trial diverged on some fold.
    """

    def best_by(score: Callable[[Scores], float | None]) -> int | None:
        return best([score(t.accuracy) for t in trials], [score(t.nll) for t in trials])

    together = best_by(mean)
    found = [together] * settings.seeds
    if _in_turn(settings):
        found = [best_by(operator.itemgetter(seed)) for seed in range(settings.seeds)]
    chosen = tuple(index for index in found if index is not None)
    if len(chosen) < len(found):
        raise RunError(
            f'space.{method}: all {len(trials)} trials diverged, so there is none to choose: '
            'lower learning_rate there, or give more trials'
        )
    return MethodTuning(trials, chosen, together)


def _final(
    settings: Settings,
    trials: Trials,
    opened: Opened,
    *,
    folder: Workdir | None,
    path: pathlib.Path,
    conclude: Conclude,
    parts: Parts,
) -> Results | None:
    """Runs what was chosen and writes the results of search and final runs together."""
    finals: dict[str, Trial] = {}
    wanted: dict[str, list[int]] = {}
    for method, said in opened.tuning.methods.items():
        for seed, index in enumerate(said.chosen):
            trial = trials[method][index]
            name = method if len(set(said.chosen)) == 1 else trial.name
            finals[name] = trial
            wanted.setdefault(name, []).append(seed)
    config = settings.config | {
        'trials': 0,
        'space': {},
        'quantizers': {name: trial.spec for name, trial in finals.items()},
        'overrides': {name: trial.overrides for name, trial in finals.items()},
        'methods': 'all',
    }
    merged: list[Results] = []

    def merge(results: Results, final: Workdir) -> Results:
        runs = {
            (finals[name].method, seed): final.finished_run(name, seed)
            for name, seeds in wanted.items()
            for seed in seeds
        }
        together = _merged(settings, results, finals=finals, runs=runs)
        tuning = dataclasses.replace(opened.tuning, test_opened=opened.time)
        together = dataclasses.replace(together, tuning=tuning)
        together = conclude(together, Outcome(path, runs))
        if folder is not None:
            folder.write_json('results.json', together.plain())
        merged.append(together)
        return results

    experiment.execute(config, str(path / 'final'), conclude=merge, parts=parts, wanted=wanted)
    return merged[0] if merged else None


def _merged(
    settings: Settings,
    results: Results,
    finals: Mapping[str, Trial],
    runs: Mapping[tuple[str, int], FinishedRun],
) -> Results:
    """Results of the final runs under the names of the methods, the seeds in order."""
    methods = {}
    for method, own in settings.methods.items():
        names = [name for name, trial in finals.items() if trial.method == method]
        spec, overrides = settings.quantizers[method], settings.overrides.get(method, {})
        if len(names) == 1:  # one setting for all, else the trials tell
            said = results.methods[names[0]]
            spec, overrides = said.spec, said.overrides
        methods[method] = entry(
            [run for (name, _), run in sorted(runs.items()) if name == method],
            spec=spec,
            overrides=overrides,
            classifies=own.classification_weight > 0,
        )
    findings = tuple(
        dataclasses.replace(found, method=finals[found.method].method if found.method else None)
        for found in results.findings
    )
    return dataclasses.replace(results, config=settings.config, methods=methods, findings=findings)
