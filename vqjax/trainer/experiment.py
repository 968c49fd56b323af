"""methods x seeds -> results: the whole comparison, resumable."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from vqjax import encoders, health, quantizers
from vqjax.results.entries import entry
from vqjax.results.environment import command, environment
from vqjax.results.finished import FinishedRun
from vqjax.results.records import Results, RunFinding
from vqjax.trainer.config.fields import FIELDS
from vqjax.trainer.config.settings import Parts, Settings, check, cutting, fold_of
from vqjax.trainer.data import records, sets
from vqjax.trainer.data.recordings import Cutting, RecordingSet
from vqjax.trainer.errors import CheckpointError, RunError
from vqjax.trainer.files.display import Display, waiting
from vqjax.trainer.files.workdir import Workdir, cannot_write
from vqjax.trainer.run import encoded, memory, pretrained
from vqjax.trainer.run.context import Context, Stage
from vqjax.trainer.run.plan import plan
from vqjax.trainer.run.processes import agree, on_first_process
from vqjax.trainer.run.runs import Run
from vqjax.trainer.run.stopping import StopRequest
from vqjax.trainer.run.tasks import fit_quantizers, make_task
from vqjax.trainer.step import evaluation, starts, steps
from vqjax.trainer.step.parallel import make_form

# pmap keeps what it compiled for ever (jax 0.10): some 900 memory maps a method, of which a process
# on Linux has 65,530.
_METHODS_KEPT = 8

YOURS = 'your data'  # what reports call data that are handed over and have no other name

Wanted = Mapping[str, Sequence[int]]  # the seeds of every method
Conclude = Callable[[Results, Workdir], Results]


def run(
    config: dict[str, Any],
    workdir: str,
    conclude: Conclude = lambda results, folder: results,
    parts: Parts = Parts(),  # noqa: B008
    wanted: Wanted | None = None,
    dataset: Any = None,
) -> dict[str, Any]:
    """Trains every method with every seed that is not finished.

    Args:
      config: plain data; fields of settings.FIELDS that it leaves out are at their defaults.
      workdir: folder for results, reports, logs and checkpoints.
      conclude: (results, folder) -> results, on the first process when all is trained: writes the
        reports and returns the results with what it finds.
      parts: what makes the quantizers of the specs.
      wanted: the seeds of each method; None for all, a method that it leaves out has none.
      dataset: your own data, see `studies.run`; None for those that the configuration names.

    Returns:
      The content of results.json; {} on processes that write nothing.

    Raises:
      RunError: something for the user to put right; nothing half written stays behind.
      Stopped: SIGTERM or SIGINT came; the same command goes on from there.
    """
    if dataset is not None:
        parts = parts._replace(dataset=dataset)
    results = execute(config, workdir, conclude=conclude, parts=parts, wanted=wanted)
    return {} if results is None else results.plain()


def execute(
    config: dict[str, Any],
    workdir: str,
    *,
    conclude: Conclude = lambda results, folder: results,
    parts: Parts = Parts(),  # noqa: B008
    wanted: Wanted | None = None,
) -> Results | None:
    """As `run`, but returns the results themselves; None on processes that write nothing."""
    settings = check(config, parts)
    if settings.trials:
        raise RunError(
            f'trials is {settings.trials}: only the study comparison searches settings, by '
            'vqjax.studies.run; set trials to 0'
        )
    wanted = _wanted(settings, wanted)
    with waiting(f'loading {settings.dataset}', quiet=jax.process_index() > 0):
        settings, own = open_data(settings, parts.dataset)
        folds = _folds(settings, own)
        dataset = folds(0)
    try:
        form = make_form(settings.parallel, settings.mesh_shape)
        settings = fit_quantizers(settings, dataset)
        num_steps = {
            name: {seed: plan(settings.methods[name], folds(seed)).num_steps for seed in seeds}
            for name, seeds in wanted.items()
        }
        for name in settings.methods:
            _check_method(settings, name, dataset=dataset, form=form)
    except (ValueError, OSError) as error:
        raise RunError(' '.join(str(error).split())) from error
    writes = jax.process_index() == 0
    folder = on_first_process(lambda: _claim(settings, dataset, workdir))
    try:
        todo = agree(_unfinished(wanted, folder) if writes else None)
        total = sum(num_steps[method][seed] for method, seeds in todo.items() for seed in seeds)
        with Display(total, quiet=not writes) as display, StopRequest() as stop:
            context = Context(
                settings=settings,
                dataset=dataset,
                workdir=folder,
                display=display,
                stop=stop,
                form=form,
                folds=folds,
            )
            display.say(_announcement(dataset, wanted=wanted, todo=todo, workdir=workdir))
            for number, (method, seeds) in enumerate(todo.items(), 1):
                run_method(context, method, seeds)
                if number % _METHODS_KEPT == 0:
                    jax.clear_caches()
        if folder is None:
            return None
        results = conclude(collect(settings, wanted, folder, dataset=dataset, parts=parts), folder)
        folder.write_json('results.json', results.plain())
        return results
    except (RunError, CheckpointError, OSError, MemoryError, JaxRuntimeError) as error:
        message = _sentence(error, workdir)
        if message is None:
            raise
        if folder is not None:
            folder.discard()
        if isinstance(error, RunError):
            raise
        raise RunError(message) from error
    finally:
        if folder is not None:
            folder.close()


def _announcement(dataset: records.Dataset, wanted: Wanted, todo: Wanted, workdir: str) -> str:
    """What is about to be trained, on what and where."""
    info = dataset.info
    sizes = ', '.join(f'{info.num_examples[split]:,} {split}' for split in dataset.splits)
    things = 'windows' if isinstance(dataset, RecordingSet) else 'images'
    shape = ' x '.join(map(str, info.image_shape))
    runs, left = (sum(map(len, x.values())) for x in (wanted, todo))
    done = f', {runs - left} of them finished before' if left < runs else ''
    return (
        f'{info.name}: {sizes} {things} of {shape}, {_counted(info.num_classes, "class", "es")}\n'
        f'{workdir}: {_counted(len(wanted), "method")}, {_counted(runs, "run")}{done}'
    )


def _counted(number: int, thing: str, plural: str = 's') -> str:
    return f'{number:,} {thing}{plural if number != 1 else ""}'


def open_data(settings: Settings, given: Any) -> tuple[Settings, sets.Own | None]:
    """Data of one's own, and the settings with their name and digest; None of other sets.

    Args:
      given: see `sets.open_own`; None for the set that the settings name.

    Raises:
      RunError: they are no data set, or others than `data_digest` says.
    """
    name, where = settings.dataset, settings.data_dir
    if given is None and name not in sets.OWN:
        if settings.data_digest:
            with sets.told(name):
                sets.check_digest(name, settings.data_digest, '')
        return settings, None
    if given is not None and name == FIELDS['dataset'].default:
        name = YOURS
    with sets.told(name):
        own = sets.open_own(
            name, data_dir=where or None, image_size=settings.image_size or None, given=given
        )
        sets.check_digest(name, settings.data_digest, own.digest)
    config = settings.config | {'dataset': own.name, 'data_digest': own.digest}
    return (
        dataclasses.replace(settings, dataset=own.name, data_digest=own.digest, config=config),
        own,
    )


def _folds(settings: Settings, own: sets.Own | None) -> Callable[[int], records.Dataset]:
    """The data of every seed: all the same, but where folds are in turn.

    Raises:
      RunError: some examples would be tested more often than others, or what `load_dataset` says.
    """

    @functools.cache
    def load(cutting: Cutting) -> records.Dataset:
        if own is None:
            where = settings.data_dir, cutting, settings.image_size
            found = sets.load_dataset(settings.dataset, *where)
        else:
            with sets.told(settings.dataset):
                found = own.at(cutting)
        return found if settings.split == 'test' else _without_test(found)

    config, folds = settings.config, settings.folds
    if fold_of(config, 0) and settings.seeds > folds and settings.seeds % folds:
        raise RunError(
            f'seeds is {settings.seeds} and folds is {folds}: give seeds a multiple of folds, a '
            f'seed for each fold, such as {-(-settings.seeds // folds) * folds}, or fewer'
        )
    return lambda seed: load(cutting(config, seed))


def _without_test(dataset: records.Dataset) -> records.Dataset:
    """The same for runs that end on another split: there is no test split to be read."""
    names = ('splits', 'recordings') if isinstance(dataset, RecordingSet) else ('splits',)
    kept: dict[str, Any] = {
        name: {split: part for split, part in getattr(dataset, name).items() if split != 'test'}
        for name in names
    }
    return dataclasses.replace(dataset, **kept)


def _sentence(error: Exception, workdir: str) -> str | None:
    """What to tell of an error that ended a run; None for one that is ours to mend."""
    if isinstance(error, RunError | CheckpointError):
        return str(error)
    if isinstance(error, OSError):
        return cannot_write(error.filename or f'to {workdir}', error)
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
        reason = (str(error).strip().splitlines() or ['of this process'])[0]
        return (
            f'out of memory ({reason[:200]}): lower batch_size, features, width or '
            'steps_per_call, or raise accumulate; the same command goes on from what is saved'
        )
    return None


def _check_method(settings: Settings, name: str, dataset: records.Dataset, form: Any) -> None:
    own, of_windows = settings.methods[name], isinstance(dataset, RecordingSet)
    if of_windows != (own.encoder == 'sensor'):
        images = ('images', ', '.join(kind for kind in encoders.ENCODERS if kind != 'sensor'))
        kind, need = ('recordings', 'sensor') if of_windows else images
        raise RunError(
            f'dataset {dataset.info.name} holds {kind}: set encoder to {need}, not {own.encoder}'
        )
    cut = [name for name in ('window', 'hop', 'pad') if getattr(settings, name)]
    if cut and not of_windows:
        raise RunError(
            f'{cut[0]} is {getattr(settings, cut[0])}, which is for recordings, and dataset '
            f'{dataset.info.name} holds images: leave it at its default'
        )
    if of_windows and own.augment:
        raise RunError(f'augment is for images, and dataset {dataset.info.name} holds recordings')
    if own.classification_weight and dataset.info.num_classes < 2:
        raise RunError(
            f'dataset {dataset.info.name} has one class, so there is nothing to tell apart: set '
            'classification_weight to 0 and reconstruction_weight above it'
        )
    if memory.may_be_large(own):
        task = make_task(settings, name, dataset, form=form)
        memory.check_memory(own, task, dataset.info.image_shape)


def _claim(settings: Settings, dataset: records.Dataset, workdir: str) -> Workdir:
    """The folder, once it is known that the checkpoints that runs start from fit them."""
    for name, method in settings.methods.items():
        if method.init_from:
            task = make_task(settings, name, dataset)
            shapes = starts.state_shapes(task, dataset.info.image_shape, method.init_batch_size)
            for seed in range(settings.seeds if pretrained.by_seed(method.init_from) else 1):
                pretrained.load(method.init_from, seed, shapes)
    return Workdir(workdir, settings.config)


def _wanted(settings: Settings, wanted: Wanted | None) -> dict[str, list[int]]:
    """The seeds of every method that has some."""
    if wanted is None:
        wanted = dict.fromkeys(settings.methods, range(settings.seeds))
    return {name: list(wanted[name]) for name in settings.methods if wanted.get(name)}


def _unfinished(wanted: Wanted, folder: Workdir) -> dict[str, list[int]]:
    todo = {
        method: [seed for seed in seeds if folder.finished(method, seed) is None]
        for method, seeds in wanted.items()
    }
    return {method: seeds for method, seeds in todo.items() if seeds}


def run_method(context: Context, method: str, seeds: list[int]) -> None:
    """Compiles one method once and trains it with every seed given.

    Folds of recordings may differ in their number of steps: once for each number.
    """
    compiled: dict[Any, dict[bool, Stage]] = {}
    for seed in seeds:
        own = context.of(seed)
        schedule = plan(own.settings.methods[method], own.dataset)
        if schedule not in compiled:
            compiled[schedule] = stages(own, method, schedule.switch > 0)
        Run.start(own, method, seed=seed, stages=compiled[schedule]).finish()
    starts.forget_programs()


def stages(context: Context, method: str, two: bool = False) -> dict[bool, Stage]:
    """What a method trains and evaluates with; with `two`, also before its codes start."""
    whole = make_task(context.settings, method, context.dataset, form=context.form)
    own = context.settings.methods[method]
    whole = encoded.reading(whole, encoded.may_stand_in(own, context.dataset))
    found = {}
    for continuous in {False, two}:
        task = dataclasses.replace(whole, continuous=continuous)
        train_fn = context.form.compile(functools.partial(steps.train_steps, task), donate=True)
        eval_fn = context.form.compile(functools.partial(evaluation.eval_step, task))
        found[continuous] = Stage(task, train_fn, eval_fn)
    return found


def collect(
    settings: Settings,
    wanted: Wanted,
    folder: Workdir,
    *,
    dataset: records.Dataset,
    parts: Parts,
) -> Results:
    """The results of the finished runs."""
    runs = {
        name: {seed: folder.finished_run(name, seed) for seed in seeds}
        for name, seeds in wanted.items()
    }
    methods = {}
    for name, of_seeds in runs.items():
        method = settings.methods[name]
        methods[name] = entry(
            list(of_seeds.values()),
            spec=None if method.quantizer is None else parts.spec(method.quantizer),
            overrides=settings.overrides.get(name, {}),
            classifies=method.classification_weight > 0,
        )
    recordings = None
    if isinstance(dataset, RecordingSet) and not fold_of(settings.config, 0):
        recordings = dataset.counts()
    return Results(
        config=settings.config,
        environment=environment(),
        methods=methods,
        command=command(sys.argv),
        findings=findings(settings, runs, folder, dataset=dataset, parts=parts),
        recordings=recordings,
    )


def findings(
    settings: Settings,
    runs: Mapping[str, Mapping[int, FinishedRun]],
    folder: Workdir,
    *,
    dataset: records.Dataset,
    parts: Parts,
) -> tuple[RunFinding, ...]:
    """What `health.diagnose` makes of every finished run, each with its method and seed."""
    found = []
    for name, of_seeds in runs.items():
        method = settings.methods[name]
        if method.quantizer is None:
            continue
        for seed, run in of_seeds.items():
            classes = None
            if method.classification_weight:
                # All codes of an image together name its class: every stage, at every place.
                places = run.bits / method.quantizer.bits
                codes = quantizers.stages(method.quantizer) * max(places, 1.0)
                classes = dataset.info.num_classes ** (1 / codes)
            diagnosed = health.diagnose(
                folder.history(name, seed),
                num_codes=method.quantizer.num_codes,
                num_classes=classes,
                spec=parts.spec(method.quantizer),
            )
            found += [RunFinding(*finding, method=name, seed=seed) for finding in diagnosed]
    return tuple(found)
