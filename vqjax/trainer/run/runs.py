"""One method with one seed: trained, checkpointed, measured once at its end."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vqjax import quantizers
from vqjax.results.finished import FinishedRun, ImageStatistics
from vqjax.results.records import Fold, Reliability, SeedResult
from vqjax.trainer import errors
from vqjax.trainer.config.settings import Method, fold_of
from vqjax.trainer.data.batches import eval_batches, init_batch
from vqjax.trainer.data.recordings import RecordingSet
from vqjax.trainer.errors import Diverged, DivergedRun, RunError, Stopped
from vqjax.trainer.files.recorder import NoRecorder, Recorder
from vqjax.trainer.files.writers import open_writers
from vqjax.trainer.run.context import Context, Stage
from vqjax.trainer.run.plan import plan
from vqjax.trainer.run.starting import Start, start, start_images
from vqjax.trainer.step import measures, starts
from vqjax.trainer.step.evaluation import Evaluation, count_params, evaluate, measure, recalibrate
from vqjax.trainer.step.parallel import Pmap
from vqjax.trainer.step.task import PROBES, TrainState


def fit(
    steps_fn: Callable,
    state: TrainState,
    batches: Iterator[dict[str, np.ndarray]],
    num_steps: int,
    on_step: Callable[[dict[str, np.ndarray]], None],
    should_stop: Callable[[], bool] = lambda: False,
    steps_per_call: int = 1,
    form: Any = Pmap(),  # noqa: B008  it has no state
) -> tuple[TrainState, bool]:
    """Takes num_steps steps: (the state after them, whether some process is asked to stop).

    Args:
      steps_fn: compiled train_steps(state, batches, count).
      state: placed; donated.
      batches: of this process, each split here over its devices.
      on_step: receives the metrics of every step, while later ones run.
      should_stop: asked before every call; True on any process ends the loop on all, a call later.
        All processes return the same.
      steps_per_call: steps of one dispatch; the last one takes what is left.
      form: of parallelism, see `parallel`.

    Raises:
      Diverged: a step was not finite.
    """
    previous, taken, stopping = None, 0, False
    while taken < num_steps:
        count = min(steps_per_call, num_steps - taken)
        # The wish travels with the batch, so all processes hear of it at the same step.
        stacked = stack([next(batches) for _ in range(count)], steps_per_call)
        stop = np.full((steps_per_call, form.local_replicas), should_stop())
        inputs = form.shard(stacked | {'stop': stop}, axis=1)
        state, measured = steps_fn(state, inputs, form.constant(np.int32(count)))
        taken += count
        if previous is not None:
            stopping = tell(form, *previous, state, on_step)
        previous = measured, count
        if stopping:
            break
    if previous is not None:
        stopping |= tell(form, *previous, state, on_step)
    return state, stopping


def stack(batches: list[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """Batches along a new leading axis of `size`, which repeats the last one where they end."""
    if size == 1:
        return {name: x[None] for name, x in batches[0].items()}
    batches = batches + batches[-1:] * (size - len(batches))
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def tell(form: Any, measured: Any, count: int, state: TrainState, on_step: Callable) -> bool:
    """Hands the metrics of one call to on_step and returns whether some process is to stop.

    Raises:
      Diverged: a step was not finite.
    """
    measured = form.read(measured)
    stopping = False
    for i in range(count):
        step = {name: x[i] for name, x in measured.items()}
        finite = step.pop('finite')
        if not finite.all():
            what = PROBES[int(np.argmin(finite))]
            raise Diverged(int(form.read(state.step)) + 1, what, state)
        stopping |= bool(step.pop('stop'))
        on_step(step)
    return stopping


@dataclasses.dataclass
class Run:
    """One method with one seed, from its start or its newest checkpoint to its last figures.

    `Run.start` makes one.

    Fields:
      stages: by whether they are continuous; the continuous one is missing where there is none.
      origin: where it begins.
      recorder: open; told what happens.
    """

    context: Context
    method: str
    seed: int
    stages: dict[bool, Stage]
    origin: Start
    recorder: Any

    def __post_init__(self) -> None:
        self.form = self.context.form
        self.settings = self.context.settings.methods[self.method]
        self.plan = plan(self.settings, self.context.dataset)
        self.state, self.dataset, self.batches, self.progress, self.checkpoints = self.origin

    @classmethod
    def start(cls, context: Context, method: str, seed: int, stages: dict[bool, Stage]) -> 'Run':
        """A run at its first step, or where its newest checkpoint left it, with its files open.

        Raises:
          RunError, CheckpointError: what `starting.start` and `open_writers` refuse.
        """
        context.display.start(method, seed)
        origin = start(context, method, seed, stages[False].task)
        if context.workdir is None:
            return cls(context, method, seed, stages, origin, NoRecorder())
        step, folder = origin.progress.step, context.workdir.path
        own, config = context.settings.methods[method], context.settings.config
        try:
            writers = open_writers(
                own.writers,
                workdir=folder,
                method=method,
                seed=seed,
                first_step=step,
                config=config,
            )
            recorder = Recorder.open(
                folder,
                method=method,
                seed=seed,
                first_step=step,
                every_step=own.record,
                writers=writers,
            )
        except BaseException:
            if origin.checkpoints is not None:
                origin.checkpoints.close()
            raise
        return cls(context, method, seed, stages, origin, recorder)

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.progress.step

    @property
    def stage(self) -> Stage:
        """What the next step is taken with."""
        return self.stages[self.step < self.plan.switch]

    def finish(self) -> None:
        """Trains to the end, measures the split that is asked for once and keeps the outcome."""
        split = self.settings.split
        with contextlib.ExitStack() as opened:
            if self.checkpoints is not None:
                opened.callback(self.checkpoints.close)
            opened.callback(self.recorder.close)
            self._train()
            evaluation = self._evaluate(split)
            scaled = {}
            if self.settings.classification_weight and split == 'test':
                scaled = recalibrate(evaluation, self._evaluate('validation'))
        if self.context.workdir is None:
            return
        result = self._result(evaluation, scaled)
        tokens = 1
        if evaluation.counts is not None:
            stages = quantizers.stages(self.settings.quantizer)
            tokens = round(float(evaluation.counts.sum()) / len(evaluation.labels) / stages)
        dataset = self.context.dataset
        run = FinishedRun(
            result=result,
            history=tuple(self.progress.history),
            bits=self._bits_per_token() * tokens,
            params=count_params(self.form.read(self.state)),
            images=ImageStatistics(
                shape=tuple(dataset.info.image_shape),
                mean=tuple(dataset.mean.tolist()),
                std=tuple(dataset.std.tolist()),
                num_classes=dataset.info.num_classes,
            ),
            recordings=dataset.about() if isinstance(dataset, RecordingSet) else None,
        )
        self.context.workdir.finish(self.method, self.seed, run)
        seconds = result.figures['seconds']
        self.context.display.finished(self.method, self.seed, result.figures, seconds)

    def _result(self, evaluation: Evaluation, scaled: dict[str, float]) -> SeedResult:
        """What the run shows on its split; scaled: the figures at a fitted temperature."""
        figures = measure(evaluation, self.settings.quantizer) | scaled
        tables = {name: figures.pop(name, None) for name in ('perplexity_per_stage', 'reliability')}
        figures['validation_accuracy'] = self.progress.history[-1]['accuracy']
        figures['seconds'] = self.progress.elapsed()
        correct = None
        if self.settings.classification_weight:
            correct = evaluation.probs.argmax(-1) == evaluation.labels
        fold = None
        if turn := fold_of(self.context.settings.config, self.seed):
            sizes = self.context.dataset.info.num_examples
            fold = Fold(*turn, train=sizes['train'], test=sizes['test'])
        split = self.settings.split
        return SeedResult(
            seed=self.seed,
            figures=figures,
            split=None if split == 'test' else split,
            fold=fold,
            correct=correct,
            counts=evaluation.counts,
            perplexity_per_stage=tuple(tables['perplexity_per_stage'] or ()),
            reliability=Reliability.read(tables['reliability']),
        )

    def take(self, num_steps: int) -> bool:
        """Takes so many steps of one stage: whether some process is asked to stop, see `fit`.

        Raises:
          DivergedRun: a step was not finite; the state before it is saved.
          RunError: no image of a batch can be read.
        """
        try:
            self.state, stopping = fit(
                self.stage.train_fn,
                self.state,
                self.batches,
                num_steps,
                self._on_step,
                self.context.stop,
                self.plan.steps_per_call,
                self.form,
            )
        except errors.Diverged as error:
            # The batches read ahead come again, so that the same command fails the same way.
            self.state = error.state
            self.batches.set_state({'next_index': self.step})
            self._save(None)
            reason = f'{error}; the state after step {self.step}'
            raise DivergedRun(self.method, self.seed, reason) from error
        except errors.Unreadable as error:
            raise RunError(f'{self.method} seed {self.seed}: {error}') from error
        return stopping

    def _train(self) -> None:
        while self.step < self.plan.num_steps:
            until = self.plan.next_stop(self.step)
            stopping = self.take(until - self.step)
            if self.step < until:
                self._save(None)
                raise Stopped(self.context.stop.number)
            if self.step == self.plan.switch:
                self._switch()
            if self.plan.evaluates(self.step):
                self._validate()
            if self._saves():
                history = self.progress.history
                self._save(score(self.settings, history[-1]) if history else None)
            if stopping and self.step < self.plan.num_steps:
                self._save(None)
                raise Stopped(self.context.stop.number)

    def _saves(self) -> bool:
        """Whether a checkpoint is written now: as planned, or since an older one would be read."""
        if self.plan.saves(self.step):
            return True
        ended = self.step == self.plan.num_steps
        return ended and self.checkpoints is not None and bool(self.checkpoints.steps())

    def _switch(self) -> None:
        """Ends the continuous stage: codes start from the features as they are now."""
        task = self.stages[False].task
        images = start_images(self.dataset, self.settings, self.seed)
        try:
            state = starts.start_quantizer(task, self.form.read(self.state), images)
        except ValueError as error:
            raise RunError(f'{self.method} seed {self.seed}, step {self.step}: {error}') from error
        self.state = self.form.place(state, task)
        self.recorder.line({'event': 'quantize', 'step': self.step})

    def _on_step(self, measured: dict[str, np.ndarray]) -> None:
        refits = int(measured.pop('refits'))
        scalars = {name: float(x) for name, x in measured.items()}
        self.progress.count(scalars, self.settings.clip_norm)
        self._note_refits(refits)
        if self.step % self.settings.log_every == 0:
            self.recorder.scalars('train', self.step, scalars)
        # Named as in the records of evaluations, whose own accuracy is another one.
        scalars['train_accuracy'] = scalars.pop('accuracy')
        self.recorder.step(self.step, scalars)
        self.context.display.step(self.step, self.plan.num_steps)

    def _note_refits(self, refits: int) -> None:
        if refits > self.progress.refits:
            self.recorder.line({'event': 'refit', 'step': self.step, 'refits': refits})
            self.context.display.say(
                f'{self.method} seed {self.seed}: codebook collapsed, re-fitted at step {self.step}'
            )
        self.progress.refits = refits

    def _gradient_flow(self) -> dict[str, float]:
        quantizer = self.stage.task.quantizer
        if quantizer is None or quantizer.targets_only:
            return {}
        state = self.form.plain(self.state)
        batch = init_batch(self.dataset, self.settings.batch_size, self.seed)
        flow = measures.gradient_flow(self.stage.task, state.params, state.stats, batch)
        flow.pop('quantizer_loss')  # evaluation has that of the whole split
        return {name: float(x) for name, x in flow.items()}

    def _evaluate(self, split: str) -> Evaluation:
        batches = eval_batches(
            self.dataset,
            split,
            self.settings.batch_size,
            jax.process_index(),
            jax.process_count(),
        )
        before = self.state
        self.state, evaluation = evaluate(self.stage.eval_fn, before, batches, self.form)
        if self.settings.record and evaluation.counts is not None:
            evaluation.means['evaluation_drift'] = self._drift(before)
        return evaluation

    def _drift(self, before: TrainState) -> float:
        """How far an evaluation moved the codebook, relative to its length; 0 in a sound model."""
        task = self.stage.task
        old, new = (
            measures.read_codebook(task, state.params, state.stats)
            for state in map(self.form.plain, (before, self.state))
        )
        if isinstance(old, tuple):
            return 0.0
        old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
        return float(np.linalg.norm(new - old)) / max(float(np.linalg.norm(old)), 1e-30)

    def _validate(self) -> None:
        flow = self._gradient_flow()  # before evaluation, which a faulty model learns from
        evaluation = self._evaluate('validation')
        means, corrupt = self.progress.take_means(self.settings.record)
        if corrupt:
            self.context.display.say(
                f'{self.method} seed {self.seed}: {corrupt} training images held NaN or infinities '
                f'since the last evaluation; left out'
            )
        record = {'epoch': self.plan.epoch(self.step), 'step': self.step} | means | flow
        record |= measure(evaluation, self.settings.quantizer)
        record.pop('reliability')
        self.progress.history.append(record)
        self.recorder.scalars('validation', self.step, record)
        if evaluation.counts is not None:
            self.recorder.code_use(self.step, evaluation.counts)
        self.recorder.flush()
        self.context.display.evaluated(record)

    def _save(self, score: float | None) -> None:
        self.recorder.flush()
        if self.checkpoints is not None:
            extra = self.progress.save() | {'data': self.batches.get_state()}
            # After a step that failed, this is the last one that did not.
            state = self.form.read(self.state)._replace(healthy=np.ones((), bool))
            self.checkpoints.save(self.step, state, extra, score)

    def _bits_per_token(self) -> float:
        quantizer = self.settings.quantizer
        return 32.0 * self.settings.features if quantizer is None else float(quantizer.bits)


def score(own: Method, record: dict[str, float]) -> float:
    """What the best checkpoint is chosen by, of the record of an evaluation."""
    return record['accuracy'] if own.classification_weight else -record['reconstruction_error']
