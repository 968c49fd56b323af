"""The trainer: configurations, data, one step, runs, and the experiment that holds them all."""

from vqjax.moved import forward

forward(
    __name__,
    {
        'fields': ('config.fields', 'errors'),
        'finished': ('run.finished',),
        'folds': ('data.folds',),
        'logs': ('files.display', 'files.recorder'),
        'loop': ('run.runs', 'step.evaluation', 'errors'),
        'models': ('step.network',),
        'recording_files': ('data.recording_files',),
        'recordings': ('data.recordings',),
        'settings': ('config.settings', 'config.fields', 'data.sets', 'errors'),
        'training': ('step.task', 'step.steps', 'step.starts', 'step.optimizer', 'step.evaluation'),
    },
)
