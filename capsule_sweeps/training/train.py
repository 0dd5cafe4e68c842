"""One training of one resolved configuration: the function `train`, to be read from top to bottom.

Shuffling depends on (seed, epoch), augmentation and dropout on (seed, epoch, batch). A run that resumes from a
checkpoint therefore needs no random state, and its results are bitwise those of an uninterrupted run.
"""

import hashlib
import io
import json
import logging
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.selection_rules import find_rule, summarize
from capsule_sweeps.console import Observer
from capsule_sweeps.data.augment import augment, normalize
from capsule_sweeps.data.load import load_data
from capsule_sweeps.networks.build import build_model, decide, free_graphs
from capsule_sweeps.networks.multiply_adds import count_multiply_adds
from capsule_sweeps.runs.files import read_json, to_json
from capsule_sweeps.runs.learned import why_not_learned
from capsule_sweeps.runs.provenance import code, provenance
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signals import Interrupted, Stop
from capsule_sweeps.runs.signature import columns, signed_config
from capsule_sweeps.tracking.base import identity, track, tracker_class
from capsule_sweeps.training.checkpoint import (
    BEST,
    bytes_needed,
    check_progress,
    damaged,
    keep_rows,
    load_momentum,
    read_checkpoint,
)
from capsule_sweeps.training.ema import Average
from capsule_sweeps.training.evaluation import constant_answer, evaluate, num_correct
from capsule_sweeps.training.execution import choose_device, forget_peak, num_threads, peak_memory, pin_execution
from capsule_sweeps.training.learning_rate import learning_rate
from capsule_sweeps.training.losses import LOSSES
from capsule_sweeps.training.outcome import check_evaluation, check_finite, log_to, record_outcome

log = logging.getLogger(__name__)
READ_EVERY = {"cpu": 1}  # batches between two readings of the loss; otherwise 50, because reading waits for the GPU


def train(config: DictConfig, run: Run, sweep: str, observer: Observer, stop: Stop) -> dict[str, Any]:
    """Train a checked config in its run folder, from the start or from its checkpoint.

    Returns the summary: accuracies (fractions) under every selection rule, seconds of training, parameters. Raises
    ValueError for errors that the user can fix (a new run has then written nothing), Busy if another process holds the
    folder, FloatingPointError if the loss is not finite, Interrupted once `stop` has a signal.
    """
    # The run as it is, its device and its images
    recipe, record, rule = config.training, run.record(), find_rule(config.selection_rule)
    run.compare(signed_config(config), record)
    device = choose_device(config.device, record.get("execution", {}).get("device"))
    forget_peak(device)
    data = load_data(config.dataset, Path(config.data_dir), device)
    run.compare_data(data.sha256, data.classes)
    if recipe.amp == "bf16" and device.type == "mps":
        raise ValueError("training.amp=bf16 is not supported on device=mps; use training.amp=none")

    # How the run is executed: as in its first attempt
    tracking = tracker_class(config)
    execution = {"device": device.type, "threads": torch.get_num_threads(), "channels_last": recipe.channels_last}
    execution = pin_execution({**execution, "compile": decide(config, device)}, record.get("execution"))
    layout = torch.channels_last if execution["channels_last"] else torch.contiguous_format

    # The network, its optimizer and what an epoch adds up
    torch.backends.cudnn.allow_tf32 = False  # for matrix products this is the default
    torch.backends.cudnn.deterministic = True  # resumed runs are bitwise equal also on a GPU
    multiply_adds = record.get("multiply_adds") or count_multiply_adds(config)
    torch.manual_seed(derive_seed(config.seed))
    decided = {"training": {"compile": "on" if execution["compile"] else "off"}}
    model = build_model(DictConfig(OmegaConf.merge(config, decided))).to(device)
    torch.nn.utils.convert_conv2d_weight_memory_format(model, layout)
    settings = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": recipe.nesterov}
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, **settings)
    average = Average(model, recipe.ema) if recipe.ema else None
    smoothing = {"label_smoothing": recipe.label_smoothing} if recipe.label_smoothing else {}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    num_images = len(data.train.labels)
    num_batches = math.ceil(num_images / recipe.batch_size)
    read_every = READ_EVERY.get(device.type, 50)
    losses = torch.zeros(num_batches, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)

    with ExitStack() as stack:
        if execution["compile"]:
            stack.callback(free_graphs, device)
        claim = stack.enter_context(run.claim())
        if (run.folder / "summary.json").exists():  # another process finished it in the meantime
            return read_json(run.folder / "summary.json")

        # Record the attempt
        stack.enter_context(num_threads(execution["threads"]))
        stack.enter_context(log_to(run.folder / "log.txt"))
        stack.enter_context(record_outcome(run, claim))
        claim.write("config.yaml", OmegaConf.to_yaml(config).encode())
        attempt = {"started": time.time(), **provenance(*tracking.packages, device=device)}
        attempt |= {"code": code(signed_config(config)), "execution": execution}
        attempt |= {"steps_done": run.record().get("steps_done", 0)}
        attempts = claim.begin(
            attempt,
            **columns(config),
            state="running",
            **dict.fromkeys(("error", "failure", "ended")),  # of an earlier attempt
            parameters=parameters,
            multiply_adds=multiply_adds,
            signed_config=signed_config(config),
            execution=execution,
            data_sha256=data.sha256,
            normalization=data.normalization._asdict(),
            classes=list(data.classes),
            sweep=sweep,
            **identity(config, run),
        )
        (run.folder / "error.txt").unlink(missing_ok=True)

        # Resume from the checkpoint
        first_epoch, first_batch, seconds, whole = 0, 0, 0.0, False
        checkpoint_path, metrics_path = run.folder / "checkpoint.pt", run.folder / "metrics.jsonl"
        if checkpoint_path.exists():
            checkpoint = read_checkpoint(checkpoint_path, device, bytes_needed(model))
            try:
                model.load_state_dict(checkpoint["model"])
                check_progress(checkpoint, recipe.epochs, num_batches)
                load_momentum(optimizer, checkpoint["optimizer"])
                if average is not None:
                    average.model.load_state_dict(checkpoint["ema"])
                first_epoch, first_batch = checkpoint["epoch"], checkpoint["batch"]
                losses[: len(checkpoint["losses"])] = checkpoint["losses"]
                correct += checkpoint["correct"]
                seconds = checkpoint.get("seconds", 0.0)
                whole = not first_batch and len(checkpoint["losses"]) == num_batches  # of the previous epoch
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(damaged(checkpoint_path, error)) from error
        rows = keep_rows(run, first_epoch, unless_last=whole)
        append = stack.enter_context(claim.lines(metrics_path.name, map(json.dumps, rows)))
        if len(rows) < first_epoch:  # the last epoch is trained but not evaluated
            first_epoch, first_batch = first_epoch - 1, num_batches
        elif not first_batch:
            losses.zero_()
            correct.zero_()
            seconds = 0.0

        # Begin to record epochs here and in the tracker
        mirror = stack.enter_context(track(config, run, sweep, rows))
        attempt["steps_done"] = first_epoch * num_batches + first_batch
        claim.update(**mirror.located(), attempts=attempts, steps_done=attempt["steps_done"])
        log.info("%s: from epoch %d, batch %d, on %s", run.folder.name, first_epoch + 1, first_batch + 1, device)

        def most_memory() -> float | None:
            """MB, of all attempts."""
            return max(filter(None, (record.get("peak_memory_mb"), peak_memory(device))), default=None)

        def save(epoch: int, batch: int) -> None:
            """Write a checkpoint that resumes at this batch of this epoch (both counted from 0).

            At the first batch the losses are those of the previous epoch, whose evaluation may not have ended.
            """
            claim.check()
            content = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                **({} if average is None else {"ema": average.model.state_dict()}),
                "epoch": epoch,
                "batch": batch,
                "losses": losses[: batch or num_batches].clone(),
                "correct": correct,
                "seconds": time.perf_counter() - started,
            }
            claim.write(checkpoint_path.name, serialized(content))

        observer.start(run.folder.name, recipe.epochs, first_epoch, num_batches)
        for epoch in range(first_epoch, recipe.epochs):
            # The order of the images
            started = time.perf_counter() - seconds  # as if it had not been interrupted
            torch.manual_seed(derive_seed(config.seed, epoch))
            order = torch.randperm(num_images).to(device)
            examples = data.train.of_epoch(epoch)
            model.train()

            for batch in range(first_batch, num_batches):
                # The images of a batch
                torch.manual_seed(derive_seed(config.seed, epoch, batch))
                step = epoch * num_batches + batch
                optimizer.param_groups[0]["lr"] = learning_rate(recipe, step, num_batches)
                index = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
                images, labels = examples.batch(index)
                images = augment(images, config.dataset.crop_padding, config.dataset.flip, config.dataset.crop_margin)
                images = normalize(images, *data.normalization).to(memory_format=layout)

                # A step
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.amp == "bf16"):
                    logits = model(images)
                progress = step / (recipe.epochs * num_batches)
                loss = LOSSES[recipe.loss](logits.float(), labels, progress, "mean", **smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if recipe.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                optimizer.step()
                if average is not None:
                    average.update(step)

                # Progress, and a checkpoint when the run is asked to stop
                losses[batch] = loss.detach() * len(labels)
                correct += num_correct(logits.detach(), labels, recipe.loss)
                done = batch + 1
                asked_to_stop = bool(stop.signum or claim.cancelled)
                if done % read_every == 0 or done == num_batches or asked_to_stop:
                    check_finite(losses[:done], epoch, num_batches)
                    seen = min(done * recipe.batch_size, num_images)
                    rate = done * recipe.batch_size / (time.perf_counter() - started)
                    observer.batch(done, float(losses[:done].sum()) / seen, int(correct) / seen, rate)
                if asked_to_stop and done < num_batches:
                    save(epoch, done)
                    claim.update(steps_done=step + 1, peak_memory_mb=most_memory())
                    raise Interrupted(stop.signum)

            # A checkpoint, before the evaluation, which may take long, or more memory than there is
            trained = time.perf_counter() - started
            last = epoch + 1 == recipe.epochs
            due = recipe.checkpoint_epochs and (epoch + 1) % recipe.checkpoint_epochs == 0
            if saved := bool(last or due or stop.signum or claim.cancelled):
                save(epoch + 1, 0)

            # Evaluation
            row: dict[str, Any] = {"epoch": epoch + 1}
            row |= {"train_loss": float(losses.sum()) / num_images, "train_accuracy": int(correct) / num_images}
            evaluated = last or (epoch + 1) % recipe.eval_every == 0
            networks = [("", model), ("ema_", average.model if average else None)] if evaluated else []
            for prefix, network in networks:
                for name, split in ("val", data.val), ("test", data.test):
                    if network is not None and split is not None:
                        found = evaluate(network, data, split, config)
                        row[f"{prefix}{name}_loss"], row[f"{prefix}{name}_accuracy"] = found
            check_evaluation(row, (epoch + 1) * num_batches)

            # The epoch's row
            lr = learning_rate(recipe, (epoch + 1) * num_batches - 1, num_batches)  # of the epoch's last step
            row |= {"lr": lr, "seconds": time.perf_counter() - started}
            row |= {"images_per_second": num_batches * recipe.batch_size / trained}
            rows.append(row)
            best_so_far = rule.chooses and evaluated and rule.pick(rows) == (row["test_accuracy"], epoch + 1)
            if best_so_far:
                best = {"model": model.state_dict(), "epoch": epoch + 1, "batch": 0}
                claim.write(BEST, serialized(best))
            append(json.dumps(row))
            mirror.log(row)
            observer.epoch(row)

            # A checkpoint when the run is asked to stop
            asked_to_stop = bool(stop.signum or claim.cancelled)
            if asked_to_stop and not saved:
                save(epoch + 1, 0)
            if asked_to_stop or saved:
                seconds = sum(row["seconds"] for row in rows)
                done = (epoch + 1) * num_batches
                claim.update(epochs_done=epoch + 1, steps_done=done, seconds=seconds, peak_memory_mb=most_memory())
            if asked_to_stop and not last:
                raise Interrupted(stop.signum)
            losses.zero_()
            correct.zero_()
            first_batch, seconds = 0, 0.0

        # The summary
        seconds = sum(row["seconds"] for row in rows)
        summary = {**summarize(rows), "parameters": parameters, "seconds": seconds}
        why = why_not_learned(signed_config(config), rows, constant_answer(data.test.labels), len(data.test))
        if why:
            log.info("%s: not learned, %s", run.folder.name, why)
        claim.update(state="finished", ended=time.time(), not_learned=why, **summary)
        # Written last: its existence means that the run is finished
        claim.write("summary.json", to_json({**columns(config), **summary, "not_learned": why}))
        run.dequeue()
        mirror.summary(summary)
    return summary


def serialized(content: dict[str, Any]) -> bytes:
    """The bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def derive_seed(*numbers: int) -> int:
    """A seed derived from some numbers, statistically unrelated to the seeds of other numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8]) >> 1
