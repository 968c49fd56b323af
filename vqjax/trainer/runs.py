"""One method with one seed: trained, checkpointed, measured once on the test split."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from vqjax import quantizers
from vqjax.trainer import data, logs, loop, pretrained, steps, training
from vqjax.trainer.checkpoints import Checkpoints
from vqjax.trainer.counts import pack_counts
from vqjax.trainer.outcomes import count_params, measure
from vqjax.trainer.plans import plan
from vqjax.trainer.processes import agree, agree_arrays, on_first_process
from vqjax.trainer.settings import RunError, Settings
from vqjax.trainer.stopping import Stopped, StopRequest
from vqjax.trainer.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Context:
    """What all runs of an experiment share. workdir is None on processes that write nothing."""

    settings: Settings
    dataset: Any
    workdir: Workdir | None
    display: logs.Display
    stop: StopRequest
    form: Any


# Means over the steps since the last evaluation that no evaluation measures itself.
_OF_TRAINING = ('loss', 'task_loss', 'reconstruction_loss', 'train_accuracy', 'clipped')


class Stage(NamedTuple):
    """A task and its compiled programs: the continuous stage of a method, or its last one."""

    task: training.Task
    train_fn: Callable
    eval_fn: Callable


class Run:
    """One method with one seed, from its start or its newest checkpoint to its test figures.

    Args:
      stages: by whether they are continuous; the continuous one is missing where there is none.
    """

    def __init__(self, context: Context, method: str, seed: int, stages: dict[bool, Stage]):
        self.context, self.form = context, context.form
        self.method, self.seed, self.stages = method, seed, stages
        self.settings = context.settings.methods[method]
        self.plan = plan(self.settings, context.dataset)
        self.begun = time.monotonic()
        context.display.start(method, seed)
        # What a checkpoint holds beside the arrays.
        self.history: list[dict[str, float]] = []
        self.tally: dict[str, float] = {}  # sums over the steps since the last evaluation
        self.seconds = 0.0
        self.step = 0
        self.refits = 0  # of a guarded codebook
        self.checkpoints = None
        self.recorder: Any = logs.NoRecorder()
        try:
            self.batches = data.train_batches(
                context.dataset,
                self.settings.batch_size,
                seed,
                jax.process_index(),
                jax.process_count(),
                self.settings.augment,
            )
            self.state = self.form.place(self._restore() or self._init(), self.stages[False].task)
        except ValueError as error:  # what data and quantizers say of values that do not fit
            raise RunError(f'{method} seed {seed}: {error}') from error
        if context.workdir is not None:
            self.recorder = logs.Recorder(
                context.workdir.path, method, seed, self.step, self.settings.record
            )

    @property
    def stage(self) -> Stage:
        """What the next step is taken with."""
        return self.stages[self.step < self.plan.switch]

    def _init_batch(self, size: int) -> data.Batch:
        return data.init_batch(self.context.dataset, size, self.seed)

    def _init(self) -> training.TrainState:
        task, loaded = self.stages[False].task, None
        if self.settings.init_from:
            loaded = self._load(self.settings.init_from)
        images = self._init_batch(self.settings.init_batch_size)['image']
        return training.init_state(task, self.seed, images, loaded)

    def _load(self, path: str) -> Any:
        """Parts of another run's model, from process 0."""
        shapes = self._shapes()
        found = on_first_process(lambda: pretrained.load(path, self.seed, shapes))
        names = agree(found and {collection: list(tree) for collection, tree in found.items()})
        if found is None:
            here = {'params': shapes.params} | shapes.stats
            taken = {c: {name: here[c][name] for name in parts} for c, parts in names.items()}
            found = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), taken)
        return agree_arrays(found)

    def _shapes(self) -> training.TrainState:
        shape = self.context.dataset.info.image_shape
        return training.state_shapes(self.stages[False].task, shape, self.settings.init_batch_size)

    def _restore(self) -> training.TrainState | None:
        like = self._shapes()
        found = None
        if self.context.workdir is not None:
            self.checkpoints = Checkpoints(
                self.context.workdir.checkpoints_of(self.method, self.seed),
                self.context.settings.config,
                self.settings.keep_checkpoints,
            )
            found = self.checkpoints.restore(like, self.context.display.say)
        extra = agree(None if found is None else found[1])
        if extra is None:
            return None
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        state = agree_arrays(zeros if found is None else found[0])
        self.step, self.history = int(state.step), extra['history']
        self.refits = int(quantizers.count_refits(state.stats))
        self.tally, self.seconds = extra['tally'], extra['seconds']
        self.batches.set_state(extra['data'])
        self.context.display.skip(self.step)
        return state

    def finish(self) -> None:
        """Trains to the end, measures the test split once and keeps the outcome."""
        try:
            self._train()
            evaluation = self._evaluate('test')
        finally:
            self.recorder.close()
            if self.checkpoints is not None:
                self.checkpoints.close()
        if self.context.workdir is None:
            return
        quantizer = self.settings.quantizer
        record = measure(evaluation, quantizer)
        record['validation_accuracy'] = self.history[-1]['accuracy']
        record['seconds'] = self._elapsed()
        tokens = 1
        if evaluation.counts is not None:
            record['counts'] = pack_counts(evaluation.counts)
            stages = quantizers.stages(quantizer)
            tokens = round(float(evaluation.counts.sum()) / len(evaluation.labels) / stages)
        dataset = self.context.dataset
        self.context.workdir.finish(
            self.method,
            self.seed,
            {
                'result': {'seed': self.seed} | record,
                'history': self.history,
                'bits': self._bits_per_token() * tokens,
                'params': count_params(self.form.read(self.state)),
                # What a tokenizer made of this run has to know of its images.
                'images': {
                    'shape': list(dataset.info.image_shape),
                    'mean': dataset.mean.tolist(),
                    'std': dataset.std.tolist(),
                    'num_classes': dataset.info.num_classes,
                },
            },
        )
        self.context.display.finished(self.method, self.seed, record, record['seconds'])

    def _train(self) -> None:
        while self.step < self.plan.num_steps:
            until = self.plan.next_stop(self.step)
            try:
                self.state, stopping = loop.fit(
                    self.stage.train_fn,
                    self.state,
                    self.batches,
                    until - self.step,
                    self._on_step,
                    self.context.stop,
                    self.plan.steps_per_call,
                    self.form,
                )
            except loop.Diverged as error:
                # The batches read ahead come again, so that the same command fails the same way.
                self.state = error.state
                self.batches.set_state({'next_index': self.step})
                self._save(None)
                raise RunError(
                    f'{self.method} seed {self.seed}, {error}; the state after step {self.step} '
                    'is saved: lower learning_rate or clip_norm'
                ) from error
            if self.step < until:
                self._save(None)
                raise Stopped(self.context.stop.number)
            if self.step == self.plan.switch:
                self._switch()
            if self.plan.evaluates(self.step):
                self._validate()
            if self.plan.saves(self.step):
                self._save(self._score() if self.history else None)
            if stopping and self.step < self.plan.num_steps:
                self._save(None)
                raise Stopped(self.context.stop.number)

    def _switch(self) -> None:
        """Ends the continuous stage: codes start from the features as they are now."""
        task = self.stages[False].task
        images = self._init_batch(self.settings.init_batch_size)['image']
        try:
            state = training.start_quantizer(task, self.form.read(self.state), images)
        except ValueError as error:
            raise RunError(f'{self.method} seed {self.seed}, step {self.step}: {error}') from error
        self.state = self.form.place(state, task)
        self.recorder.line({'event': 'quantize', 'step': self.step})

    def _on_step(self, measured: dict[str, np.ndarray]) -> None:
        self.step += 1
        self._note_refits(int(measured.pop('refits')))
        scalars = {name: float(x) for name, x in measured.items()}
        for name, value in scalars.items():
            self.tally[name] = self.tally.get(name, 0.0) + value
        if self.settings.clip_norm:  # the share of steps that it changed
            clipped = scalars['gradient_norm'] > self.settings.clip_norm
            self.tally['clipped'] = self.tally.get('clipped', 0.0) + clipped
        self.tally['steps'] = self.tally.get('steps', 0) + 1
        if self.step % self.settings.log_every == 0:
            self.recorder.scalars('train', self.step, scalars)
        # Named as in the records of evaluations, whose own accuracy is another one.
        scalars['train_accuracy'] = scalars.pop('accuracy')
        self.recorder.step(self.step, scalars)
        self.context.display.step(self.step, self.plan.num_steps)

    def _note_refits(self, refits: int) -> None:
        if refits > self.refits:
            self.recorder.line({'event': 'refit', 'step': self.step, 'refits': refits})
            self.context.display.say(
                f'{self.method} seed {self.seed}: codebook collapsed, re-fitted at step {self.step}'
            )
        self.refits = refits

    def _gradient_flow(self) -> dict[str, float]:
        quantizer = self.stage.task.quantizer
        if quantizer is None or quantizer.targets_only:
            return {}
        state = self.form.plain(self.state)
        batch = self._init_batch(self.settings.batch_size)
        flow = steps.gradient_flow(self.stage.task, state.params, state.stats, batch)
        flow.pop('quantizer_loss')  # evaluation has that of the whole split
        return {name: float(x) for name, x in flow.items()}

    def _evaluate(self, split: str) -> loop.Evaluation:
        batches = data.eval_batches(
            self.context.dataset,
            split,
            self.settings.batch_size,
            jax.process_index(),
            jax.process_count(),
        )
        before = self.state
        self.state, evaluation = loop.evaluate(self.stage.eval_fn, before, batches, self.form)
        if self.settings.record and evaluation.counts is not None:
            evaluation.means['evaluation_drift'] = self._drift(before)
        return evaluation

    def _drift(self, before: training.TrainState) -> float:
        """How far an evaluation moved the codebook, relative to its length; 0 in a sound model."""
        task = self.stage.task
        old, new = (
            steps.read_codebook(task, state.params, state.stats)
            for state in map(self.form.plain, (before, self.state))
        )
        if isinstance(old, tuple):
            return 0.0
        old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
        return float(np.linalg.norm(new - old) / max(np.linalg.norm(old), 1e-30))

    def _validate(self) -> None:
        flow = self._gradient_flow()  # before evaluation, which a faulty model learns from
        evaluation = self._evaluate('validation')
        taken = self.tally.pop('steps')
        means = {name: total / taken for name, total in self.tally.items()}
        means['train_accuracy'] = means.pop('accuracy')
        corrupt = round(means.pop('corrupt') * taken)
        if self.settings.record:  # the steps themselves tell the rest
            means = {name: x for name, x in means.items() if name in _OF_TRAINING}
        if 'revived' in means:
            means['revived'] *= taken  # codes since the last evaluation
        if self.refits:
            means['refits'] = float(self.refits)  # since the start
        if corrupt:
            self.context.display.say(
                f'{self.method} seed {self.seed}: {corrupt} training images held NaN or infinities '
                f'since the last evaluation; left out'
            )
        record = {'epoch': self.plan.epoch(self.step), 'step': self.step} | means | flow
        record |= measure(evaluation, self.settings.quantizer)
        record.pop('reliability')
        self.tally = {}
        self.history.append(record)
        self.recorder.scalars('validation', self.step, record)
        if evaluation.counts is not None:
            self.recorder.code_use(self.step, evaluation.counts)
        self.recorder.flush()
        self.context.display.evaluated(record)

    def _score(self) -> float:
        """What the best checkpoint is chosen by, on the validation split."""
        if self.settings.classification_weight:
            return self.history[-1]['accuracy']
        return -self.history[-1]['reconstruction_error']

    def _save(self, score: float | None) -> None:
        self.recorder.flush()
        if self.checkpoints is not None:
            extra = {
                'history': self.history,
                'tally': self.tally,
                'seconds': self._elapsed(),
                'data': self.batches.get_state(),
            }
            # After a step that failed, this is the last one that did not.
            state = self.form.read(self.state)._replace(healthy=np.ones((), bool))
            self.checkpoints.save(self.step, state, extra, score)

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.begun

    def _bits_per_token(self) -> float:
        quantizer = self.settings.quantizer
        return 32.0 * self.settings.features if quantizer is None else float(quantizer.bits)
