"""The figures and the table of the rows that ``benchmarks/nas.py`` makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.results import markdown, provenance, read_rows
from tgdd_plugin import InputError

FULL, EPOCH, SOFT = "full", "one epoch", ", soft labels"
DISTILLED = ("distilled, sampled", "distilled, recorded")
RANDOM = "random"
PROXIES = (*DISTILLED, RANDOM, "herding", EPOCH, *(name + SOFT for name in (*DISTILLED, RANDOM)))
COSTS = ("parameters", "flops", "synflow")
TOP = (5, 10)
SAMPLES = 2000
CHANCE = 2.0  # times chance: a network below was not trained by full training

Values = Sequence[float]


def spearman(truth: Any, proxy: Any) -> Any:
    """Spearman's rank correlation of the last axis: Pearson's of ranks, equals at the mean of theirs."""
    one, other = (stats.rankdata(values, axis=-1) for values in (truth, proxy))
    return _cosine(*(ranks - ranks.mean(-1, keepdims=True) for ranks in (one, other)))


def kendall(truth: Any, proxy: Any) -> Any:
    """Kendall's tau-b of the last axis."""
    first, second = np.triu_indices(np.shape(truth)[-1], 1)
    return _cosine(*(np.sign(v[..., first] - v[..., second]) for v in (np.asarray(truth), np.asarray(proxy))))


def _cosine(one: Any, other: Any) -> Any:
    with np.errstate(invalid="ignore"):  # of a draw in which all are equal it is not a number
        return (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))


def interval(figure: Callable[..., Any], *columns: Values) -> tuple[float, float, float]:
    """A figure of columns of the same networks, and its 95 % bootstrap interval over networks (percentiles, seed 0)."""
    values = np.array(columns, dtype=float)
    index = np.random.default_rng(0).integers(values.shape[1], size=(SAMPLES, values.shape[1]))
    again = np.concatenate([figure(*values[:, part]) for part in np.array_split(index, 20)])
    low, high = np.nanpercentile(again, [2.5, 97.5])
    return float(figure(*values)), float(low), float(high)


def gain(truth: Any, proxy: Any, other: Any) -> Any:
    """By how much a proxy's Spearman correlation with the truth is above that of another on the same networks."""
    return spearman(truth, proxy) - spearman(truth, other)


def mean_rank(*columns: Values) -> list[float]:
    """The mean of the ranks in several columns, each with its best on top; more is the better."""
    return np.mean([stats.rankdata(column) for column in columns], axis=0).tolist()


def top_overlap(truth: Values, proxy: Values, count: int) -> float:
    """Share of the proxy's best ``count`` networks that are among the truth's."""
    best = [set(np.argsort(-np.array(values), kind="stable")[:count].tolist()) for values in (truth, proxy)]
    return len(best[0] & best[1]) / count


def regret(truth: Values, proxy: Values) -> float:
    """The truth's best minus the truth of the proxy's best, in the truth's unit."""
    return max(truth) - truth[int(np.argmax(proxy))]


def table(folder: Path, truths: Path | None = None) -> str:
    """The Markdown table of a folder's rows, over all networks and over those that train.

    Args:
        folder: The rows.
        truths: The folder of the truths. Default: ``None``, the same.
    """
    rows = [row for row in read_rows(folder) if row["kind"] == "network"]
    full = [row for row in read_rows(truths or folder) if row["kind"] == "truth" and row.get(FULL)]
    for of_kind in (rows, full):
        if (jobs := len({json.dumps({**row["settings"], "arguments": None}, sort_keys=True) for row in of_kind})) > 1:
            raise InputError(f"'{folder}' has networks of {jobs} different jobs; give each an --output of its own")
    for name in ("data", "judge"):
        if len({json.dumps(row["settings"][name], sort_keys=True) for row in (*rows, *full)}) > 1:
            raise InputError(f"the truths in '{truths}' are of other images than '{folder}'; give those of its data")
    known = {json.dumps(row["arguments"], sort_keys=True): row for row in full}
    pairs = [(row, known.get(json.dumps(row["arguments"], sort_keys=True))) for row in rows]
    proxies = [name for name in PROXIES if any(row.get(name) for row in rows)]
    both = [(row, truth) for row, truth in pairs if truth and all(row.get(name) for name in proxies)]
    if len(both) < 3:
        return f"{len(both)} networks are trained in full and on the proxies; a ranking wants at least 3"
    chance = 100 / full[0]["classes"]
    trained = [pair for pair in both if accuracy(pair[1], FULL) > CHANCE * chance]
    lines = [line for title, chosen in (("all", both), ("trained", trained)) for line in _lines(title, chosen, proxies)]
    head = ["networks", "ranked by", "Spearman (95 %)", "beside random (95 %)", "Kendall (95 %)"]
    head += [*(f"top {n}" for n in TOP), "regret, points", "time, % of full training"]
    found = sorted(accuracy(truth, FULL) for _, truth in both)
    notes = [
        f"Truth: accuracy on {' and '.join(sorted({row['scored_on'] for row in full}))} after full training, "
        f"{found[0]:.1f} to {found[-1]:.1f} %, median {found[len(found) // 2]:.1f}; 'trained' are those above "
        f"{CHANCE:g} times chance. +: mean of the ranks. Beside random: difference of the Spearman correlations, its "
        f"interval of the same draws of networks. Top n: share of the best n among the truth's. Regret: what picking "
        f"the first loses. Time of all networks together, without making the set.",
    ]
    return markdown(head, lines, [*notes, *provenance([*rows, *full])[1:]])


Pair = tuple[dict[str, Any], dict[str, Any]]


def _lines(title: str, pairs: Sequence[Pair], proxies: Sequence[str]) -> list[list[str]]:
    """The lines of some networks: each proxy, each cost, and means of ranks."""
    if len(pairs) < 3:
        return []
    truth = [accuracy(full, FULL) for _, full in pairs]
    singles = {name: [accuracy(row, name) for row, _ in pairs] for name in proxies}
    singles |= {cost: [-1.0 if (c := row["costs"][cost]) is None else c for row, _ in pairs] for cost in COSTS}
    sums = [COSTS, *((name, *costs) for name in proxies for costs in (*((cost,) for cost in COSTS), COSTS))]
    time = sum(seconds(full, FULL) for _, full in pairs)
    lines = []
    for names in [*((name,) for name in singles), *sums]:
        found = singles[names[0]] if len(names) == 1 else mean_rank(*(singles[name] for name in names))
        cells = [_with_interval(spearman, truth, found)]
        beside = RANDOM in singles and names != (RANDOM,)
        cells.append(_with_interval(gain, truth, found, singles[RANDOM], form="+.2f") if beside else "")
        cells.append(_with_interval(kendall, truth, found))
        cells += [f"{100 * top_overlap(truth, found, n):.0f} %" if len(pairs) > n else "" for n in TOP]
        spent = sum(row["costs"]["seconds"] for row, _ in pairs) if set(names) & set(COSTS) else 0.0
        spent += sum(seconds(row, name) for row, _ in pairs for name in names if name not in COSTS)
        cells += [f"{regret(truth, found):.1f}", f"{100 * spent / time:.1f}"]
        lines.append([f"{title}: {len(pairs)}", " + ".join(names), *cells])
    return lines


def _with_interval(figure: Callable[..., Any], *columns: Values, form: str = ".2f") -> str:
    value, low, high = interval(figure, *columns)
    return f"{value:{form}} ({low:{form}} .. {high:{form}})"


def accuracy(row: dict[str, Any], column: str) -> float:
    """A network's mean accuracy in a column, in per cent."""
    return 100 * mean(entry["accuracy"] for entry in row[column])


def seconds(row: dict[str, Any], column: str) -> float:
    """All its trainings' time in a column; of full training, one's."""
    spent = [entry["seconds"] for entry in row[column]]
    return mean(spent) if column == FULL else sum(spent)
