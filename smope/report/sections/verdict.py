"""The verdict: one paragraph, computed from the runs, that says what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from smope.analysis.audit_verdict import audit_verdict
from smope.analysis.classes import class_accuracies
from smope.analysis.confusion import class_counts, split_errors
from smope.analysis.experts import expert_spread
from smope.analysis.frames import forgetting_by_task
from smope.analysis.intervals import CONFIDENCE, over_images, over_seeds
from smope.analysis.labels import comparable
from smope.analysis.run import Run
from smope.analysis.significance import compare_all
from smope.console.tables import reference_line
from smope.report.figures import points
from smope.report.sections.base import Section, by_label, plural, stream_title

SMALL = 0.005  # a change of accuracy that is called none
MAX_RANKED = 3  # configurations that are named
SCORE = "final_average_accuracy"


def verdict(runs: Sequence[Run]) -> Section:
    """What was trained on what, how well it works, what was forgotten, and what is worst."""
    counted = comparable(runs)
    groups = by_label(counted)
    if len(groups) == 1:
        ((label, members),) = groups.items()
        sentences = _of_one(label, members)
    else:
        sentences = _of_several(groups)
    sentences += _warnings(counted)
    return Section("verdict", "Verdict", " ".join(filter(None, sentences)))


def _of_one(label: str, runs: Sequence[Run]) -> list[str]:
    return [
        f"{label} {_subject(runs[0])}.",
        _unfinished(runs[0]),
        f"{_accuracy_sentence(runs)} {_chance(runs[0])}",
        reference_line({**runs[0].record, **runs[0].scores}) if len(runs) == 1 else "",
        _forgetting_sentence(runs),
        _mixture_sentence("The mixture of experts", runs),
        _weakest_sentence(runs),
    ]


def _of_several(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    first = next(iter(groups.values()))[0]
    members = _members(groups)
    if len({(run.record["stream"]["content_hash"], run.num_tasks) for run in members}) > 1:
        return [
            f"{plural(len(groups), 'configuration')} were trained on different streams, so their "
            f"scores do not compare: see the tables below, or make a report of one stream alone."
        ]
    if len({run.tasks_done for run in members}) > 1:
        return [
            f"{plural(len(groups), 'configuration')} have finished different numbers of tasks, so "
            f"their scores do not compare yet."
        ]
    ranked = sorted(groups.items(), key=lambda item: -_mean_score(item[1]))
    best, winners = ranked[0]
    return [
        f"{plural(len(groups), 'configuration')} {_subject(first, plural_verb=True)}.",
        _unfinished(first),
        f"{_ranking(ranked)} {_chance(first)}",
        _difference_sentence(members, ranked),
        _forgetting_ranking(groups),
        *(_mixture_sentence(f"The mixture of {name}", runs) for name, runs in ranked[:MAX_RANKED]),
        _with(best, _weakest_sentence(winners)),
    ]


def _members(groups: Mapping[str, Sequence[Run]]) -> list[Run]:
    return [run for runs in groups.values() for run in runs]


def _subject(run: Run, plural_verb: bool = False) -> str:
    """`was trained on digits: 10 classes in 2 tasks (...)`."""
    record = run.record
    train = sum(task.get("train", 0) for task in record["tasks"])
    test = sum(task.get("test", 0) for task in record["tasks"])
    backbone = record.get("backbone", {}).get("name")
    text = (
        f"{'were' if plural_verb else 'was'} trained on {stream_title(run)}: "
        f"{plural(len(record['class_names']), 'class', 'classes')} in "
        f"{plural(run.num_tasks, 'task')}, {train:,} training and {test:,} "
        f"{record['evaluated_on']} images"
    )
    return f"{text}, with the backbone {backbone}" if backbone else text


def _unfinished(run: Run) -> str:
    if run.tasks_done == run.num_tasks:
        return ""
    return (
        f"Only {run.tasks_done} of {run.num_tasks} tasks are finished, and all numbers are those "
        f"of these tasks."
    )


def _mean_score(runs: Sequence[Run]) -> float:
    return float(numpy.mean([run.scores[SCORE] or 0.0 for run in runs]))


def _accuracy_with_interval(runs: Sequence[Run]) -> str:
    """`94.9 % (95 % interval 93.1 to 96.2 over test images)`; over seeds if there are several."""
    values = [run.scores[SCORE] or 0.0 for run in runs]
    text = f"{points(_mean_score(runs))} %"
    interval = over_images(runs[0]) if len(runs) == 1 else over_seeds(values)
    if interval is not None:
        kind = "over test images" if len(runs) == 1 else f"over {len(runs)} seeds"
        low, high = map(points, interval)
        return f"{text} ({100 * CONFIDENCE:.0f} % interval {low} to {high} {kind})"
    if len(runs) > 1:
        low, high = points(min(values)), points(max(values))
        return f"{text} ({plural(len(runs), 'seed')}, {low} to {high})"
    return text


def _accuracy_sentence(runs: Sequence[Run]) -> str:
    after = f"After task {runs[0].tasks_done}" if not runs[0].finished else "After the last task"
    mean = ", mean over tasks" if runs[0].tasks_done > 1 else ""
    return f"{after} its accuracy is {_accuracy_with_interval(runs)}{mean}."


def _chance(run: Run) -> str:
    seen = {label for classes in run.classes_of_tasks[: run.tasks_done] for label in classes}
    return f"Guessing would give {points(1 / len(seen))} %." if seen else ""


def _forgetting_sentence(runs: Sequence[Run]) -> str:
    frame = forgetting_by_task(runs)
    if frame.empty:
        return "With one task there is nothing to forget."
    table: Any = frame.groupby("task")[["best", "final", "forgetting"]].mean()
    mean = float(table["forgetting"].mean())
    if mean < -SMALL:
        return (
            f"Nothing was forgotten on average: earlier tasks have become better by "
            f"{points(-mean)} points since they were learned."
        )
    task = table["forgetting"].idxmax()
    worst = table.loc[task]
    fell = f"task {task} fell from {points(worst['best'])} to {points(worst['final'])} %"
    if mean < SMALL:
        text = f"Next to nothing was forgotten ({points(mean)} points on average)"
        return f"{text}; most on one task: {fell}." if worst["forgetting"] > SMALL else f"{text}."
    if len(table) == 1:
        return f"It has forgotten {points(mean)} points: {fell}."
    return f"It has forgotten {points(mean)} points of earlier tasks on average; most: {fell}."


def _forgetting_ranking(groups: Mapping[str, Sequence[Run]]) -> str:
    values = {
        label: float(numpy.mean([run.scores["forgetting"] or 0.0 for run in runs]))
        for label, runs in groups.items()
        if runs[0].tasks_done > 1
    }
    if len(values) < 2:
        return ""
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if values[most] - values[least] < SMALL:
        return f"All forget about the same, {points(values[most])} points."
    return (
        f"{least} forgets least ({points(values[least])} points), {most} most "
        f"({points(values[most])} points)."
    )


def _mixture_sentence(subject: str, runs: Sequence[Run]) -> str:
    """Whether the experts are used as if there were only as many as an image chooses."""
    routed = [run for run in runs if run.has_snapshots and run.snapshots.last.experts is not None]
    if not routed:
        return ""
    frames = [expert_spread(run) for run in routed]
    mean: Any = sum(frame.astype(float) for frame in frames[1:]) + frames[0].astype(float)
    mean = mean / len(frames)
    if mean.empty:
        return ""
    least, most = int(mean["least"].iloc[0]), int(mean["most"].iloc[0])
    collapsed = mean[frames[0]["collapsed"]]
    scale = f"{least} would be a collapse, {most} even use"
    if len(collapsed) == len(mean):
        return (
            f"{subject} has collapsed: of {most} experts of a head only "
            f"{_range(mean['effective'])} are in effective use ({scale})."
        )
    if collapsed.empty:
        return (
            f"{subject} has not collapsed: {_range(mean['effective'])} of {most} experts of a head "
            f"are in effective use ({scale})."
        )
    rest = mean.drop(collapsed.index)
    blocks = ", ".join(str(int(block)) for block in collapsed["block"])
    return (
        f"{subject} has collapsed in {'block' if len(collapsed) == 1 else 'blocks'} {blocks} "
        f"({_range(collapsed['effective'])} of {most} experts of a head in effective use) and not "
        f"in the others ({_range(rest['effective'])}; {scale})."
    )


def _range(values: Any) -> str:
    low, high = f"{values.min():.1f}", f"{values.max():.1f}"
    return low if low == high else f"{low} to {high}"


def _weakest_sentence(runs: Sequence[Run]) -> str:
    """The worst task, where errors go, and the worst class with what it is taken for."""
    last = numpy.mean([run.matrix[-1] for run in runs], axis=0)
    text = ""
    if len(last) > 1:
        task = int(last.argmin())
        text = f"the weakest task is {task + 1} with {points(float(last[task]))} %"
    recorded = [run for run in runs if run.has_snapshots]
    if not recorded:
        return f"{_capital(text)}." if text else ""
    split: Any = sum(split_errors(run).iloc[-1] for run in recorded) / len(recorded)
    errors = split["within_task"] + split["between_tasks"]
    if not errors:
        return "No test image is classified wrong."
    if runs[0].tasks_done > 1 and runs[0].class_incremental:
        share = points(split["between_tasks"] / errors, 0)
        text += f"; {share} % of all errors are into another task"
    return f"{_capital(text)}. {_worst_class(recorded)}" if text else _worst_class(recorded)


def _worst_class(runs: Sequence[Run]) -> str:
    """Of the class with the lowest accuracy: the classes of the same runs may have other labels."""
    run = runs[0]
    frame: Any = class_accuracies(run)
    frame = frame[frame["after_task"] == frame["after_task"].max()]
    worst = frame.loc[frame["accuracy"].idxmin()]
    seed = f" (seed {run.seed})" if len(runs) > 1 else ""
    text = (
        f"The worst class is {worst['name']}{seed}: {points(worst['accuracy'])} % of its "
        f"{plural(int(worst['images']), 'image')} are right"
    )
    taken = class_counts(run)[[int(worst["label"])]].toarray()[0]
    taken[int(worst["label"])] = 0
    if not taken.any():
        return f"{text}."
    share = points(float(taken.max() / worst["images"]))
    return f"{text}, {share} % are taken for {run.record['class_names'][int(taken.argmax())]}."


def _ranking(ranked: Sequence[tuple[str, Sequence[Run]]]) -> str:
    named = [f"{label} with {_accuracy_with_interval(runs)}" for label, runs in ranked[:MAX_RANKED]]
    rest = len(ranked) - len(named)
    others = f" and {plural(rest, 'more', 'more')} down to {points(_mean_score(ranked[-1][1]))} %"
    followers = ", then ".join(named[1:])
    return f"The best final accuracy is that of {named[0]}; then {followers}{others * (rest > 0)}."


def _difference_sentence(runs: Sequence[Run], ranked: Sequence[tuple[str, Sequence[Run]]]) -> str:
    """Whether the best and the second could be equal."""
    (best, _), (second, _) = ranked[:2]
    frame = compare_all(runs)
    rows = [
        row
        for row in frame.to_dict("records")
        if {row["first"], row["second"]} == {best, second} and row["pairs"] > 1
    ]
    if not rows:
        return "With fewer than two common seeds, chance cannot be told from a difference."
    row = rows[0]
    outcome = "may be chance" if row["p"] > 1 - CONFIDENCE else "is more than chance"
    note = ""
    if row["smallest_p"] > 1 - CONFIDENCE:
        note = f"; with {row['pairs']} seeds no difference could show more"
    return (
        f"The difference of the first two, {points(abs(row['difference']))} points, {outcome} "
        f"(p = {row['p']:.2g}{note})."
    )


def _warnings(runs: Sequence[Run]) -> list[str]:
    """What makes numbers unusable."""
    sentences = []
    for run in runs:
        hashes = run.record.get("frozen_weights") or {}
        if hashes.get("trained") not in (None, hashes.get("loaded")):
            sentences.append(f"{run.name} has changed weights of the frozen backbone: do not use.")
        audit = audit_verdict(run)
        if audit and not audit.passed:
            failed = ", ".join(audit.outcomes(False))
            sentences.append(f"smope audit does not trust {run.name}: it failed {failed}.")
    return sentences


def _with(label: str, sentence: str) -> str:
    """`The weakest task is 1.` -> `With ncm, the weakest task is 1.`"""
    return f"With {label}, {sentence[:1].lower()}{sentence[1:]}" if sentence else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
