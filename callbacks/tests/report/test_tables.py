from guardlit_callbacks.report.data import read_run
from guardlit_callbacks.report.labels import group
from guardlit_callbacks.report.tables import gold_table
from run_folders import write_run


def cells(html):
    rows = html.split("<tbody>", 1)[1].split("<tr>")[1:]
    return [[cell.split("<")[0].split(">")[1] for cell in row.split("<td")[1:]] for row in rows]


def test_the_gold_table_has_the_first_the_best_and_the_last_evaluation(tmp_path):
    method = group([read_run(str(write_run(tmp_path / "run")))], ["FlowGRPO"])
    assert cells(gold_table(method)) == [
        ["FlowGRPO", "seed 1", "first", "0", "0.5000", "2.000", "1.000", "0.950 to 1.050"],
        ["FlowGRPO", "seed 1", "best average", "10", "0.6000", "2.400", "1.200", "1.150 to 1.250"],
        ["FlowGRPO", "seed 1", "last", "20", "0.7500", "1.600", "0.800", "0.750 to 0.850"],
    ]
    assert "<th>beauty ↓</th>" in gold_table(method)
