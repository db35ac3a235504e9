"""The settings of the training loop: the `trainer` group of the configuration. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from smope.declare.ranges import AtLeast, NotNegative, OrAuto, Positive, Range
from smope.declare.texts import Device

Record = Literal["auto", "seen", "all", "top", "nothing"]
Reference = Literal["ncm", "none"]


@dataclass(frozen=True)
class TrainerSettings:
    """The keys of the `trainer` group. Defaults are those of the paper for CIFAR-100 (Le et al.
    2026, arXiv 2509.24483) and of the authors' code.

    Attributes:
        batch_size: the global batch size of training; N processes each take a share. An incomplete
            last batch of an epoch is dropped. A configuration may say "auto": see
            training/auto.py.
        eval_batch_size: the same for evaluation; no image is dropped.
        gradient_accumulation_steps: parts that a process's share of a training batch is taken in,
            one after the other, for one step. Needs less memory; the mean over the batch is the
            same up to rounding.
        epochs: of each task.
        dense_epochs: of a warm-up before the first task in which all experts are used; None: half
            of `epochs`.
        learning_rate: of AdamW, which starts anew with each phase. A method may give its prompts a
            multiple of it.
        weight_decay: of AdamW.
        schedule: see training/schedule.py.
        frozen_steps: see training/schedule.py. A configuration may say "auto".
        iter_step: steps of an epoch that the schedule counts with; None: the true number.
        schedule_lag: see training/schedule.py.
        alignment_epochs: see training/alignment.py.
        alignment_samples_per_class: see training/alignment.py.
        alignment_learning_rate: see training/alignment.py.
        alignment_batches: batches of an epoch of alignment: "old_classes" takes as many as there
            are old classes (the authors' code), "all" takes every feature.
        statistics_images: class statistics from "train" images (augmented, the authors' code) or
            "plain" ones.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: float32, bfloat16 and float16 (autocast) or float64.
        num_workers: processes that decode images; 0 decodes in the main process. None: 0 on a CPU
            and for images in memory, up to 4 elsewhere.
        images_on_device: hold all decoded images on the device and make batches there; no number
            changes. "auto": on a CUDA device, where they take at most an eighth of its free memory.
            See training/device_images.py.
        deterministic: use only kernels whose results repeat (a CPU's always do). Slower on
            accelerators.
        compile: run the backbone through torch.compile. Takes a minute or two at the start and is
            then faster on accelerators. Changes the last digits of a run's numbers. "auto": where
            that was measured to be faster and the run is long enough, see training/compiling.py.
            "graphs": as CUDA graphs.
        activation_checkpointing: keep only the input of each block for the backward pass and
            compute the rest again. Less memory, about a third more time, the same numbers.
        checkpoint_minutes: write a checkpoint after so many minutes, beside those at the end of
            each phase and task; None: no others.
        checkpoint_steps: the same after so many training steps of a task.
        record: logits and chosen experts that evaluation keeps for the analysis: of the test images
            of the tasks "seen" so far, of "all" tasks, or "nothing". "top" is "seen" with the
            largest logits alone, and "auto" decides between these two by size. See
            training/recording.py.
        reference: at the end, what "ncm" reaches on the frozen features, for comparison, or "none".
            Costs one forward pass of each image. See training/reference.py.
        keep: what model.safetensors holds: what classifying images needs ("inference"), or also
            what learning more classes needs ("learnable"). See run/artefact.py.
    """

    batch_size: Annotated[int, AtLeast(1), OrAuto()] = 128
    eval_batch_size: Annotated[int, AtLeast(1)] = 128
    gradient_accumulation_steps: Annotated[int, AtLeast(1)] = 1
    epochs: Annotated[int, AtLeast(1)] = 20
    dense_epochs: Annotated[int | None, AtLeast(0, example="3")] = None
    learning_rate: Annotated[float, Positive()] = 5e-3
    weight_decay: Annotated[float, NotNegative()] = 0.0
    schedule: Literal["warm_frozen_cosine", "epoch_cosine"] = "warm_frozen_cosine"
    frozen_steps: Annotated[int, AtLeast(0), OrAuto()] = 80
    iter_step: Annotated[int | None, AtLeast(1, example="40")] = None
    schedule_lag: bool = True
    alignment_epochs: Annotated[int, AtLeast(0)] = 50
    alignment_samples_per_class: Annotated[int, Range(1, 100_000)] = 128
    alignment_learning_rate: Annotated[float, Positive()] = 1e-5
    alignment_batches: Literal["old_classes", "all"] = "old_classes"
    statistics_images: Literal["train", "plain"] = "train"
    device: Annotated[str, Device()] = "auto"
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    num_workers: Annotated[int | None, Range(0, 256)] = None
    images_on_device: bool | Literal["auto"] = "auto"
    deterministic: bool = False
    compile: bool | Literal["auto", "graphs"] = False
    activation_checkpointing: bool = False
    checkpoint_minutes: Annotated[float | None, Positive()] = 10.0
    checkpoint_steps: Annotated[int | None, AtLeast(1, example="500")] = None
    record: Record = "auto"
    reference: Reference = "ncm"
    keep: Literal["inference", "learnable"] = "inference"

    @property
    def warm_up_epochs(self) -> int:
        """`dense_epochs`, or half of `epochs` where it is not set."""
        return self.epochs // 2 if self.dense_epochs is None else self.dense_epochs
