"""What the training loop can be told; its keys are those of the `trainer` group.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Record = Literal["nothing", "seen", "all"]


@dataclass(frozen=True)
class TrainerSettings:
    """Defaults are the authors' for CIFAR-100 (Le et al. 2026, arXiv 2509.24483, and their
    program).

    batch_size, eval_batch_size:  images, of all processes together. Training drops an incomplete
                                  last batch.
    gradient_accumulation_steps:  parts that a process's share of a training batch is taken in, one
                                  after the other, for
                                  one step: less memory, the same mean over the batch, up to its
                                  last digits.
    epochs, dense_epochs:         of each task, and of the dense warm-up before the first (null:
                                  half of `epochs`).
    learning_rate, weight_decay:  AdamW, fresh for each phase; a method may give its prompts a
                                  multiple of the rate.
    schedule, frozen_steps, iter_step, schedule_lag: see training/schedule.py (iter_step null: steps
        of an epoch).
    alignment_*:                  see training/alignment.py. `alignment_batches`: "old_classes"
                                  takes as many batches an
                                  epoch as there are old classes (the authors' program), "all" uses
                                  every feature.
    statistics_images:            class statistics from training images "train" (augmented, the
                                  authors' program) or
                                  "plain".
    device:                       auto, cpu, cuda, cuda:N or mps.
    precision:                    float32, bfloat16 / float16 (autocast) or float64.
    num_workers:                  processes that decode images; 0 decodes in the main process, null
                                  decides by itself: 0
                                  on a CPU and for images in memory, up to 4 elsewhere.
    deterministic:                only kernels whose results repeat (the CPU's always do); slower on
                                  accelerators.
    compile:                      run the backbone through torch.compile: a minute or two at the
                                  start, then faster on
                                  accelerators. Moves the last digits of a run's numbers.
    activation_checkpointing:     keep only each block's input for the backward pass and compute the
                                  rest again there:
                                  less memory, about a third more time, the same numbers.
    checkpoint_minutes, checkpoint_steps: a checkpoint after so long, or so many steps of a task,
    beside those at the
                                  end of each phase and task; null: none.
    record:                       what evaluation keeps for the analysis, see training/recording.py:
                                  logits and chosen
                                  experts of the test images of the tasks "seen" so far, of "all"
                                  tasks, or "nothing".
    """

    batch_size: int = 128
    eval_batch_size: int = 128
    gradient_accumulation_steps: int = 1
    epochs: int = 20
    dense_epochs: int | None = None
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    schedule: Literal["warm_frozen_cosine", "epoch_cosine"] = "warm_frozen_cosine"
    frozen_steps: int = 80
    iter_step: int | None = None
    schedule_lag: bool = True
    alignment_epochs: int = 50
    alignment_samples_per_class: int = 128
    alignment_learning_rate: float = 1e-5
    alignment_batches: Literal["old_classes", "all"] = "old_classes"
    statistics_images: Literal["train", "plain"] = "train"
    device: str = "auto"
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    num_workers: int | None = None
    deterministic: bool = False
    compile: bool = False
    activation_checkpointing: bool = False
    checkpoint_minutes: float | None = 10.0
    checkpoint_steps: int | None = None
    record: Record = "seen"
