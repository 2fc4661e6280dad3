"""Small trainings that an InterferenceCallback watches."""

from transformers import Trainer, TrainerCallback, TrainingArguments

from interference import InterferenceCallback
from tests.support.mixtures import mixture
from tests.support.models import batch, llama, lora

PROBES = {
    "red": [batch([12, 7, 9], [3, 1, 5], seed=2), batch([8, 8], [2, 4], seed=3)],
    "blue": [batch([6, 11], [2, 6], seed=4), batch([9, 10], [3, 3], seed=5)],
}


def arguments(out, kind=TrainingArguments, **options):
    return kind(
        output_dir=str(out / "trained"),
        **{
            "per_device_train_batch_size": 2,
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "max_steps": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
        }
        | options,
    )


def examples(count=8, image=False):
    made = batch([12] * count, [4] * count, image=image)
    return [{key: value[row] for key, value in made.items()} for row in range(count)]


def trained(out, model, callbacks=(), resume=None, dataset=None, **options):
    """A Trainer after its training; `callbacks` are what to measure with, as keyword arguments."""
    trainer = Trainer(model=model, args=arguments(out, **options), train_dataset=dataset or examples())
    for given in callbacks:
        trainer.add_callback(given if isinstance(given, TrainerCallback) else measuring(trainer, **given))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def measuring(trainer, kind=InterferenceCallback, batches=PROBES, **options):
    return kind(trainer, batches, **{"every": 2} | options)


def callback_of(trainer, kind=InterferenceCallback):
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def own_log(trainer):
    """What a Trainer logs without the callback, but for times."""
    mine = ("interference/", "loss/", "signal/")
    entries = [entry for entry in trainer.state.log_history if not any(key.startswith(mine) for key in entry)]
    return [{k: v for k, v in entry.items() if "per_second" not in k and "runtime" not in k} for entry in entries]


def grams(runs):
    return {step: run.gram() for step, run in runs.items()}


class Everywhere(InterferenceCallback):
    """Also measures between the backward passes of one step, without keeping anything."""

    def on_substep_end(self, args, state, control, **_):
        self._compute(self.batches)


MODELS = {
    "lora": lambda: lora(llama(attention_dropout=0.1), lora_dropout=0.2),
    "mixlora": lambda: mixture(llama(attention_dropout=0.1), lora_dropout=0.2),
    "random": lambda: mixture(llama(attention_dropout=0.1), lora_dropout=0.2, routing="random"),
}
