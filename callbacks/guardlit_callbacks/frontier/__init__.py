"""The frontier of gold against proxy and against distance from the base, as numbers. Imports `tools`; numpy only.

The over-optimization literature compares methods by it (Gao et al. 2023, arXiv 2210.10760): which method keeps more
gold at an equal proxy, and at an equal distance from the base. Public:

| name | what it is |
|---|---|
| `read_path` | a run's folder -> its `GoldPath` |
| `GoldPath`, `PromptScores`, `Average` | a run over training; its scores by prompt; how the Average follows from them |
| `MethodPaths` | a label and the paths of its seeds |
| `compare` | methods -> a `Frontier`, with intervals over seeds and prompts |
| `AXES` | the axes at whose equal values gold is compared: "proxy", "sqrt_kl" and "step" |
| `Frontier`, `AxisTable`, `Row`, `Point`, `MethodSummary`, `Estimate` | what it finds, frozen dataclasses |
| `as_json` | any of these as what `json.dump` takes |
| `rows`, `write` | the rows of a `Frontier`'s tables; writes them to `frontier.csv`, and all to `frontier.json` |
| `Curve`, `curve`, `common_steps` | what the figure shows of a method |
| `first_crossing`, `values_at` | where a path first crosses a level, and what other quantities are there |

Example:
    ```python
    from guardlit_callbacks.frontier import MethodPaths, compare, read_path
    methods = [
        MethodPaths(name, tuple(read_path(f"runs/{name}-{seed}", f"seed {seed}") for seed in (42, 43, 44)))
        for name in ("FlowGRPO", "GRPOGuard")
    ]
    found = compare(methods, baseline="FlowGRPO", levels={"proxy": [0.8, 0.9, 0.95]})
    for row in found.axes["proxy"].levels:
        print(row.method, row.level, row.scores["average"], row.differences.get("average"))
    (area,) = (row for row in found.axes["proxy"].means if row.method == "GRPOGuard")
    print(area.differences["average"])  # area between the curves / width
    ```
"""

from guardlit_callbacks.frontier.analysis import AXES, compare
from guardlit_callbacks.frontier.average import Average
from guardlit_callbacks.frontier.crossing import first_crossing, values_at
from guardlit_callbacks.frontier.curves import Curve, curve
from guardlit_callbacks.frontier.intervals import Estimate
from guardlit_callbacks.frontier.paths import GoldPath, MethodPaths, PromptScores, read_path
from guardlit_callbacks.frontier.results import AxisTable, Frontier, MethodSummary, Point, Row, as_json, rows, write
from guardlit_callbacks.frontier.summaries import common_steps

__all__ = [
    "AXES",
    "Average",
    "AxisTable",
    "Curve",
    "Estimate",
    "Frontier",
    "GoldPath",
    "MethodPaths",
    "MethodSummary",
    "Point",
    "PromptScores",
    "Row",
    "as_json",
    "common_steps",
    "compare",
    "curve",
    "first_crossing",
    "read_path",
    "rows",
    "values_at",
    "write",
]
