"""The top of a report: what became of proxy and gold in each method, and the settings that matter most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guardlit_callbacks.figures import ProxyGoldCurve, turning_point
from guardlit_callbacks.frontier import Estimate, Frontier
from guardlit_callbacks.report.frontier import Comparison
from guardlit_callbacks.report.frontier_tables import interval_name
from guardlit_callbacks.report.html import DASH, number, paragraph, section, table
from guardlit_callbacks.report.labels import ConfigKeys, flatten
from guardlit_callbacks.report.methods import Method, each_run


def verdict_section(methods: Sequence[Method], keys: ConfigKeys, compared: Comparison | None = None) -> str:
    """Who keeps more gold at an equal proxy, a sentence and a row of numbers for each method, and the main settings.

    Args:
        methods: of the report.
        keys: whose `summary` names the settings.
        compared: the methods' frontier.
    """
    curves = {method.label: method.proxy_gold() for method in methods}
    sentences = [paragraph(sentence, "verdict") for sentence in (comparisons(compared.found) if compared else ())]
    sentences += [paragraph(f"{label}: {verdict(curve)}", "verdict") for label, curve in curves.items()]
    sentences += [
        paragraph(f"{method.label}, {name}, while training: {run.verdict}.")
        for method, name, run in each_run(methods)
        if run.verdict
    ]
    numbers = table(
        ["method", "proxy, first", "proxy, last", "change in std at the start", "gold, best", "at step", "gold, last"],
        [[label, *_numbers(curve)] for label, curve in curves.items() if curve],
        caption="Gold is the average of score / base score: 1 is the base model",
    )
    return section("Verdict", *sentences, numbers if any(curves.values()) else "", _settings(methods, keys))


def verdict(curve: ProxyGoldCurve | None) -> str:
    """One sentence: what proxy and gold did, and whether the run over-optimizes."""
    if curve is None:
        return "no verdict, since no gold scores were logged (GoldScore writes them to gold.csv)."
    gold = f"gold went from {curve.gold[0]:.3f} to {curve.gold[-1]:.3f}"
    best = turning_point(curve)
    if curve.proxy is not None:
        gold = f"proxy went from {curve.proxy[0]:.4g} to {curve.proxy[-1]:.4g}, {gold}"
    if best is None:
        return (
            f"no over-optimization: {gold}; gold never falls from its highest beyond its noise while the proxy rises."
        )
    where = f"gold is highest at step {int(curve.step[best])} ({curve.gold[best]:.3f})"
    return f"over-optimization: {gold}; {where} and falls from there while the proxy rises."


def comparisons(found: Frontier) -> list[str]:
    """A sentence on each method but the baseline: its mean gold at an equal proxy, and whether that differs."""
    axis = found.axes.get("proxy")
    if axis is None:
        return []
    sentences = []
    for row in (row for row in axis.means if row.method != found.baseline):
        apart = row.differences["average"]
        size = f"{number(abs(apart.value), '.3f')} {'higher' if apart.value > 0 else 'lower'} than {found.baseline}'s"
        where = f"at an equal proxy, averaged from {number(axis.low)} to {number(axis.high)},"
        sentences.append(f"{row.method}: {where} gold is {size} ({_certainty(apart, interval_name(found))}).")
    return sentences


def _certainty(apart: Estimate, interval: str) -> str:
    if not np.isfinite(apart.low):
        return "a single run each, so no interval"
    ends = f"{interval} of the difference {number(apart.low, '+.3f')} to {number(apart.high, '+.3f')}"
    return ends if apart.low > 0 or apart.high < 0 else f"{ends}: it contains 0, so no difference is shown"


def _numbers(curve: ProxyGoldCurve) -> list[str]:
    best = int(np.argmax(curve.gold))
    gold = [number(curve.gold[best], ".3f"), str(int(curve.step[best])), number(curve.gold[-1], ".3f")]
    if curve.proxy is None:
        return [DASH, DASH, DASH, *gold]
    change = (curve.proxy[-1] - curve.proxy[0]) / curve.spread if curve.spread else np.nan
    return [number(curve.proxy[0]), number(curve.proxy[-1]), number(change, "+.2f"), *gold]


def _settings(methods: Sequence[Method], keys: ConfigKeys) -> str:
    """The settings of `keys.summary` that the configurations have; of several seeds all values."""
    header = ["setting", *(method.label for method in methods)]
    rows = []
    for name, key in keys.summary.items():
        values = [[flatten(run.config).get(key, "") for run in method.runs] for method in methods]
        if any(value for runs in values for value in runs):
            cells = [
                ", ".join(dict.fromkeys(v.rpartition(".")[2] if "class_path" in key else v for v in runs))
                for runs in values
            ]
            rows.append([name, *(cell or DASH for cell in cells)])
    return table(header, rows, text=len(header), caption="Settings that matter most", wrap=True) if rows else ""
