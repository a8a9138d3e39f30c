"""The training loop: plain torch, one process's view.

The same numbers come out for the same seed however often the run was interrupted: which rows make a step, the random
state within it and the learning rate are functions of the step, not of what went before. The number of workers changes
the order of floating-point sums, and which random numbers a row meets in dropout.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from mmray import config
from mmray.tasks import Batch, Task, monitored
from mmray.training import checkpoint, run_folder
from mmray.training.checkpoint import TrainState
from mmray.training.context import Context
from mmray.training.feed import TrainTables, ValTables, ahead, micro_batches
from mmray.training.log import RunLog
from mmray.training.optimisation import (
    Average,
    Progress,
    build_optimizer,
    current_phase,
    is_finished,
    learning_rate,
    set_rates,
    weight_decay,
)
from mmray.training.phases import (
    Penalties,
    check_patterns,
    frozen_norms,
    penalties_of,
    total_penalty,
    trained_parameters,
)


def fit(run: config.Run, task: Task, train_tables: TrainTables, val_tables: ValTables, context: Context) -> TrainState:
    """Train until the end of the last phase, from the last checkpoint of the run folder if there is one.

    Where a rank is told to stop (`Context.stopping`), all end after the same step with a checkpoint, from which the
    next call goes on; the state that is returned is then not that of a finished run.

    `train_tables(epoch, step)` gives this rank's rows of each step of `epoch` from `step` on; `val_tables()` this
    rank's part of the validation rows, each row on exactly one rank. ValueError where `train` names parameters that
    the model does not have; FloatingPointError when the loss is no longer finite.
    """
    torch.manual_seed(run.seed)
    state = checkpoint.last(context.run_dir) or TrainState()
    model = task.build_model().to(context.device)
    check_patterns(run.train, model)
    optimizer = build_optimizer(run.train.optimizer, model)
    folder = checkpoint.folder_of(context.run_dir, state.step)
    if state.step:
        checkpoint.load_model(folder, model)
        checkpoint.load_optimizer(folder, optimizer)
    average = Average(model, run.train.ema_decay) if run.train.ema_decay is not None else None
    if state.step and average:
        checkpoint.load_unaveraged(folder, model)
    if context.rank == 0:
        num_parameters = sum(p.numel() for p in model.parameters())
        run_folder.write_environment(
            context.run_dir,
            num_workers=context.world_size,
            device=context.device.type,
            num_parameters=num_parameters,
            **task.describe(model),
        )
    monitor, maximise = monitored(run, task)
    if run.train.compile:
        model.compile()  # the model's own forward; a loss that a model computes by hand stays as it is
    with _log(run, state, monitor, context) as log:
        epoch = _Epoch(run, task, model, optimizer, average, context, log)
        while not is_finished(run.train, state.monitored, maximise):
            epoch.enter_phase(state)
            metrics = epoch.train(state, train_tables)
            if metrics is None:
                break
            metrics |= epoch.validate(val_tables)
            state = _after_epoch(state, metrics, monitor, run.train)
            if log:
                log.write("epoch", state.epoch - 1, state.step, metrics, epoch.labels)
            epoch.save(state)
            context.report(metrics)
            if context.ask_to_stop()():
                break
    context.wait_for_all()
    return state


class _Epoch:
    """What stays the same from step to step. What a phase has of its own is set by `enter_phase`."""

    phase: config.Phase
    first_epoch: int
    schedule: config.Schedule
    step_loss: nn.Module
    penalties: Penalties
    frozen_norms: list[nn.Module]

    def __init__(
        self,
        run: config.Run,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        context: Context,
        log: RunLog | None,
    ) -> None:
        self.run, self.task, self.model = run, task, model
        self.optimizer, self.average, self.context, self.log = optimizer, average, context, log
        self.autocast = torch.autocast(
            context.device.type, torch.bfloat16, enabled=uses_bf16(run.train, context.device)
        )
        self.monitor, self.maximise = monitored(run, task)
        self.steps_per_epoch = task.info.split("train").rows // run.train.batch_size
        self.trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.number: int | None = None
        self.labels: dict[str, str | int] = {}

    def enter_phase(self, state: TrainState) -> None:
        """Be set up for the phase that the epoch of `state` belongs to."""
        number, self.first_epoch = current_phase(self.run.train, state.monitored, self.maximise)
        if number == self.number:
            return
        self.number, self.phase = number, self.run.train.each_phase[number]
        self.schedule = self.phase.schedule or self.run.train.schedule
        if state.epoch == self.first_epoch and not state.step_in_epoch:
            self._begin_phase()
        trained = trained_parameters(self.phase, self.model) & self.trainable
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)
            if name not in trained:
                self.optimizer.state.pop(parameter, None)  # what a later phase trains again begins without a past
        if self.run.train.compile:
            torch.compiler.reset()  # what was compiled before has no gradients for what was frozen then
        self.frozen_norms = frozen_norms(self.model)
        self.penalties = penalties_of(self.run.train, self.model)
        self.step_loss = _StepLoss(self.task, self.model, self.penalties)
        if self.context.world_size > 1:  # anew, for it sends the gradients of what was trained when it was made
            self.step_loss = nn.parallel.DistributedDataParallel(self.step_loss, gradient_as_bucket_view=True)
        if self.run.train.phases:
            num_trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
            self.labels = {"phase": self.phase.name, "trained_parameters": num_trained}

    def _begin_phase(self) -> None:
        """Have the weights that a phase begins with: those that predict, as the phase before left them or the best."""
        if self.average:
            self.average.restore()
        if self.phase.start_from == "best":
            self.context.wait_for_all()  # rank 0 has just written the last
            best = checkpoint.best(self.context.run_dir, self.monitor, self.maximise)
            folder = checkpoint.folder_of(self.context.run_dir, best.step)
            checkpoint.load_model(folder, self.model)
            checkpoint.load_optimizer(folder, self.optimizer)
            if self.average:
                self.average = Average(self.model, self.average.decay)

    def train(self, state: TrainState, train_tables: TrainTables) -> dict[str, float] | None:
        """Do the rest of the epoch that `state` stands in, moving `state` on; return its training metrics.

        None where a rank was told to stop: then a checkpoint was written.
        """
        settings, context = self.run.train, self.context
        parameters = list(self.model.parameters())
        # A run that goes on within an epoch takes up the sums of its losses, so that its log is the undisturbed one.
        unlogged_steps = min(state.step_in_epoch, state.step % settings.log_every_steps)
        clock = _Clock(context, unlogged_steps, state.unlogged_loss)
        whole = _Clock(context, state.step_in_epoch, state.epoch_loss)
        self.step_loss.train()
        for norm in self.frozen_norms:
            norm.eval()

        lengths = getattr(self.task, "lengths", None)

        def steps() -> Iterator[list[Batch]]:
            for table in train_tables(state.epoch, state.step_in_epoch):
                table = self.task.augmented(table, state.epoch)
                batches = micro_batches(table, self.task.collate, settings.accumulate, lengths)
                yield [b.pinned() for b in batches] if context.device.type == "cuda" else batches

        for batches in clock.waiting(whole.waiting(ahead(steps, self.run.resources.prefetch_steps))):
            told_to_stop = context.ask_to_stop()
            progress = self._progress(state, state.step)
            rate, decay = self._rates(progress)
            set_rates(self.optimizer, rate, decay)
            torch.manual_seed(
                int(np.random.SeedSequence([self.run.seed, state.step, context.rank]).generate_state(1)[0])
            )
            loss = self._forward_backward(batches)
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            if self.average:
                self.average.update(progress.steps + 1)
            state.step_in_epoch += 1
            for each in (clock, whole):
                each.add(sum(b.num_rows for b in batches), loss)
            if state.step % settings.log_every_steps == 0:
                self._log_steps(state, clock)
                clock.restart()
            every = settings.checkpoint_every_steps
            is_due = every and state.step % every == 0 and state.step_in_epoch < self.steps_per_epoch
            stops = told_to_stop()
            if is_due or stops:
                sums = {"epoch_loss": whole.loss_sum(), "unlogged_loss": clock.loss_sum()}
                _require_finite(sums["epoch_loss"], state, rate)
                self.save(state.model_copy(update={"metrics": {}, **sums}))  # these weights were not validated
            if stops:
                return None
        measured, rates = whole.measured(), self._logged_rates(state)
        _require_finite(measured["train/loss"], state, rates["lr"])
        penalty = {"train/penalty": total_penalty(self.penalties).item()} if settings.penalties else {}
        return {
            **measured,
            **penalty,
            **rates,
            "train_rows": state.step_in_epoch * settings.batch_size,
            "epoch_s": whole.elapsed_s,
        }

    def _rates(self, progress: Progress) -> tuple[float, float]:
        """Learning rate and weight decay of the next step."""
        optimizer = self.run.train.optimizer
        rate = learning_rate(self.schedule, self.phase.lr or optimizer.lr, progress)
        return rate, weight_decay(self.schedule, optimizer.weight_decay, progress)

    def _logged_rates(self, state: TrainState) -> dict[str, float]:
        """Those of the step that was just done."""
        rate, decay = self._rates(self._progress(state, state.step - 1))
        return {"lr": rate} | ({"weight_decay": decay} if self.schedule.weight_decay_gamma else {})

    def _progress(self, state: TrainState, steps: int) -> Progress:
        """How far the phase has come after so many steps of the run, in the epoch of `state`."""
        name = self.schedule.monitor or self.monitor
        watched = state.monitored if name == self.monitor else state.watched.get(name, [])
        return Progress(
            steps=steps - self.first_epoch * self.steps_per_epoch,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.phase.epochs,
            watched=watched[self.first_epoch :],
            maximise=self.task.maximise if name == self.task.monitor else not name.endswith("loss"),
        )

    def _forward_backward(self, batches: list[Batch]) -> torch.Tensor:
        """Gradients of one step, averaged over its global batch; returns this rank's share of the mean loss."""
        rows = self.run.train.batch_size / self.context.world_size
        total = torch.zeros((), device=self.context.device)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            no_sync = getattr(self.step_loss, "no_sync", None)
            with contextlib.nullcontext() if last or no_sync is None else no_sync():
                with self.autocast:
                    # DDP averages gradients over ranks: weighting by rows makes that the mean over the global batch,
                    # and the penalty, which stands in every micro-batch, count once.
                    loss, objective = self.step_loss(batch.to(self.context.device))
                    share = batch.num_rows / rows
                    objective = objective * share
                objective.backward()
            total += loss.detach() * share
        return total / self.context.world_size

    def _log_steps(self, state: TrainState, clock: _Clock) -> None:
        measured, rates = clock.measured(), self._logged_rates(state)
        _require_finite(measured["train/loss"], state, rates["lr"])
        if self.log:
            self.log.write("step", state.epoch, state.step, measured | rates, self.labels)

    def validate(self, val_tables: ValTables) -> dict[str, float]:
        """Metrics over every validation row, on every rank."""
        self.step_loss.eval()
        self.context.equalise(self.model.buffers())  # running statistics; a checkpoint has those of rank 0
        metrics, loss, rows = self.task.new_metrics(), 0.0, 0
        averaged = self.average.in_the_model() if self.average else contextlib.nullcontext()
        # In full precision, as predictions are made: bfloat16 would round neighbouring scores to the same value.
        with averaged, torch.inference_mode():
            for batch in ahead(lambda: map(self.task.collate, val_tables())):
                on_device = batch.to(self.context.device)
                scores, batch_loss = self.task.evaluate(self.model, on_device)
                metrics.update(scores.cpu(), batch)
                loss, rows = loss + batch_loss, rows + batch.num_rows
        loss, total_rows = self.context.sum(loss, rows)
        expected = self.task.info.split("val").rows
        if total_rows != expected:
            raise RuntimeError(
                f"validation saw {total_rows:.0f} of {expected} rows: this must not happen, please report it"
            )
        states = self.context.gather(metrics.state())
        computed: dict[str, float] = {}
        if self.context.rank == 0:
            for other in states[1:]:
                metrics.merge(other)
            computed = {f"val/{name}": value for name, value in metrics.compute().items()}
        shared: dict[str, float] = self.context.broadcast(computed)
        return {"val/loss": loss / max(1.0, total_rows), **shared, "val_rows": total_rows}

    def save(self, state: TrainState) -> None:
        """Write a checkpoint and delete those no longer wanted; rank 0 alone."""
        if self.context.rank == 0:
            if self.log:
                self.log.store()  # before the checkpoint, which vouches for the lines up to it
            averaged = self.average.tensors if self.average else None
            checkpoint.save(self.context.run_dir, state, self.model, self.optimizer, averaged)
            checkpoint.prune(self.context.run_dir, self.monitor, self.maximise, self.run.train.keep_best)


def _require_finite(loss: float, state: TrainState, rate: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"train/loss became {loss} by step {state.step} (epoch {state.epoch}, lr {rate:g}); "
            f"lower train.optimizer.lr, set train.clip_norm or train.precision: fp32"
        )


class _StepLoss(nn.Module):
    """Model and loss as one module, so that DDP sees the whole of a step.

    Gives the task's loss, and what is minimised: with penalties on top.
    """

    def __init__(self, task: Task, model: nn.Module, penalties: Penalties) -> None:
        super().__init__()
        self.task, self.model, self.penalties = task, model, penalties

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        loss = self.task.loss(self.model, batch)
        return loss, loss + total_penalty(self.penalties) if self.penalties else loss


class _Clock:
    """Loss, rows, elapsed time and time spent waiting for input since the last restart."""

    def __init__(self, context: Context, steps: int, loss_sum: float) -> None:
        self._context = context
        self.restart()
        self._steps = steps
        self._loss += loss_sum if context.rank == 0 else 0.0

    def restart(self) -> None:
        self._began = time.perf_counter()
        self._waited_s, self._rows, self._steps = 0.0, 0, 0
        self._loss = torch.zeros((), dtype=torch.float64, device=self._context.device)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    def waiting(self, items: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Pass items on, counting the time until each is there."""
        while True:
            began = time.perf_counter()
            item = next(items, None)
            self._waited_s += time.perf_counter() - began
            if item is None:
                return
            yield item

    def add(self, rows: int, loss: torch.Tensor) -> None:
        """Count one step: rows and share of the loss of this rank."""
        self._rows, self._steps = self._rows + rows, self._steps + 1
        self._loss += loss

    def loss_sum(self) -> float:
        """Losses of the steps, over all ranks, summed."""
        return self._context.sum(float(self._loss))[0]

    def measured(self) -> dict[str, float]:
        """Loss and speed, over all ranks."""
        elapsed_s = self.elapsed_s
        loss, rows, waited_share = self._context.sum(float(self._loss), self._rows, self._waited_s / elapsed_s)
        measured = {
            "train/loss": loss / max(1, self._steps),
            "rows_per_s": rows / elapsed_s,
            "input_wait_percent": 100 * waited_share / self._context.world_size,
        }
        if self._context.device.type == "cuda":
            measured["device_memory_mb"] = torch.cuda.max_memory_allocated(self._context.device) / 2**20
        return measured


def uses_bf16(settings: config.Train, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16: as set, or with `auto` where the hardware is made for it."""
    if settings.precision != "auto":
        return settings.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def _log(
    run: config.Run, state: TrainState, monitor: str, context: Context
) -> contextlib.AbstractContextManager[RunLog | None]:
    if context.rank != 0:
        return contextlib.nullcontext()
    settings = {
        f"{section}.{key}": value for section in ("model", "train") for key, value in run.to_dict()[section].items()
    }
    return RunLog(context.run_dir, state.step, settings, monitor)


def _after_epoch(state: TrainState, metrics: dict[str, float], monitor: str, train: config.Train) -> TrainState:
    """The state at the end of an epoch; ValueError where it has no metric that the run goes by."""
    schedules = [train.schedule, *(phase.schedule for phase in train.phases if phase.schedule)]
    watched = {schedule.monitor for schedule in schedules if schedule.monitor}
    for name in [monitor, *sorted(watched)]:
        if name not in metrics:
            key = "monitor" if name == monitor else "schedule.monitor"
            choices = sorted(name for name in metrics if name.startswith("val/"))
            raise ValueError(f"train.{key}={name!r} is not a metric of this task; choose from {choices}")
    return TrainState(
        epoch=state.epoch + 1,
        step=state.step,
        monitored=[*state.monitored, metrics[monitor]],
        watched={name: [*state.watched.get(name, []), metrics[name]] for name in watched},
        metrics=metrics,
    )
