"""One method with one seed: trained, checkpointed, measured once at its end."""

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from vqjax import quantizers
from vqjax.trainer import data, logs, loop, steps, training
from vqjax.trainer.correctness import pack_correct
from vqjax.trainer.counts import pack_counts
from vqjax.trainer.outcomes import count_params, measure, recalibrate
from vqjax.trainer.plans import plan
from vqjax.trainer.recordings import RecordingSet
from vqjax.trainer.settings import RunError, Settings, fold_of
from vqjax.trainer.starting import Context, Stage, Start, init_batch, start
from vqjax.trainer.stopping import Stopped
from vqjax.trainer.writers import open_writers


class DivergedRun(RunError):
    """A step of this method with this seed was not finite; the state before it is saved."""

    def __init__(self, method: str, seed: int, reason: object):
        super().__init__(
            f'{method} seed {seed}, {reason} is saved: lower learning_rate or clip_norm'
        )
        self.method, self.seed = method, seed


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
            return cls(context, method, seed, stages, origin, logs.NoRecorder())
        step, folder = origin.progress.step, context.workdir.path
        own, config = context.settings.methods[method], context.settings.config
        try:
            writers = open_writers(own.writers, folder, method, seed, step, config)
            recorder = logs.Recorder.open(folder, method, seed, step, own.record, writers)
        except BaseException:
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
        quantizer = self.settings.quantizer
        record = measure(evaluation, quantizer) | scaled
        if split != 'test':
            record['split'] = split
        record['validation_accuracy'] = self.progress.history[-1]['accuracy']
        record['seconds'] = self.progress.elapsed()
        if self.settings.classification_weight:
            record['correct'] = pack_correct(evaluation.probs.argmax(-1) == evaluation.labels)
        tokens = 1
        if evaluation.counts is not None:
            record['counts'] = pack_counts(evaluation.counts)
            stages = quantizers.stages(quantizer)
            tokens = round(float(evaluation.counts.sum()) / len(evaluation.labels) / stages)
        dataset = self.context.dataset
        more = {}
        if isinstance(dataset, RecordingSet):
            more['recordings'] = dataset.about()
        if turn := fold_of(self.context.settings.config, self.seed):
            sizes = {split: dataset.info.num_examples[split] for split in ('train', 'test')}
            record['fold'] = {'repeat': turn[0], 'fold': turn[1]} | sizes
        self.context.workdir.finish(
            self.method,
            self.seed,
            {
                'result': {'seed': self.seed} | record,
                'history': self.progress.history,
                'bits': self._bits_per_token() * tokens,
                'params': count_params(self.form.read(self.state)),
                # What a tokenizer made of this run has to know of its images.
                'images': {
                    'shape': list(dataset.info.image_shape),
                    'mean': dataset.mean.tolist(),
                    'std': dataset.std.tolist(),
                    'num_classes': dataset.info.num_classes,
                },
            }
            | more,
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
                reason = f'{error}; the state after step {self.step}'
                raise DivergedRun(self.method, self.seed, reason) from error
            except data.Unreadable as error:
                raise RunError(f'{self.method} seed {self.seed}: {error}') from error
            if self.step < until:
                self._save(None)
                raise Stopped(self.context.stop.number)
            if self.step == self.plan.switch:
                self._switch()
            if self.plan.evaluates(self.step):
                self._validate()
            if self.plan.saves(self.step):
                history = self.progress.history
                self._save(score(self.settings, history[-1]) if history else None)
            if stopping and self.step < self.plan.num_steps:
                self._save(None)
                raise Stopped(self.context.stop.number)

    def _switch(self) -> None:
        """Ends the continuous stage: codes start from the features as they are now."""
        task = self.stages[False].task
        images = init_batch(self.dataset, self.settings, self.seed)
        try:
            state = training.start_quantizer(task, self.form.read(self.state), images)
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
        batch = data.init_batch(self.dataset, self.settings.batch_size, self.seed)
        flow = steps.gradient_flow(self.stage.task, state.params, state.stats, batch)
        flow.pop('quantizer_loss')  # evaluation has that of the whole split
        return {name: float(x) for name, x in flow.items()}

    def _evaluate(self, split: str) -> loop.Evaluation:
        batches = data.eval_batches(
            self.dataset,
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


def score(own: Settings, record: dict[str, float]) -> float:
    """What the best checkpoint is chosen by, of the record of an evaluation."""
    return record['accuracy'] if own.classification_weight else -record['reconstruction_error']
