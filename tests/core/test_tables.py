"""Tables: the demo's to the letter, cells as they come, and Markdown that parses back to its cells."""

from __future__ import annotations

from tgdd_plugin.core.tables import markdown_table, text_table

HEADERS = ["trained on", "images", "epochs", "accuracy %", "to full data", "seconds"]

DEMO = """\
trained on  images  epochs  accuracy %  to full data  seconds
-------------------------------------------------------------
distilled       10     200  92.5 ± 1.4          -4.7      0.6
random          10     200  73.0 ± 7.2         -24.2      0.6
full data     1437      30  97.2 ± 0.5                    5.2"""


def test_the_demos_table_to_the_letter() -> None:
    rows = [
        ["distilled", 10, 200, "92.5 ± 1.4", "-4.7", "0.6"],
        ["random", 10, 200, "73.0 ± 7.2", "-24.2", "0.6"],
        ["full data", 1437, 30, "97.2 ± 0.5", "", "5.2"],
    ]
    assert text_table(HEADERS, rows) == DEMO
    assert text_table(HEADERS, rows, "lrrrrr") == DEMO


def test_the_rule_is_as_long_as_the_longest_line() -> None:
    drawn = text_table(["name", "what it says"], [["a", "much longer than its header"], ["bcdef", "short"]], "ll")
    assert drawn.splitlines() == [
        "name   what it says",
        "----------------------------------",
        "a      much longer than its header",
        "bcdef  short",
    ]


def test_cells_are_printed_as_they_are() -> None:
    cells = ["1e5", "0.10", "+1.0", "007", "-0.0"]
    assert text_table(["n", *"abcd"], [cells]).splitlines()[2].split() == cells
    assert markdown_table([*"abcde"], [cells]).splitlines()[2] == "| 1e5 | 0.10 | +1.0 | 007 | -0.0 |"
    assert text_table(["a", "b"], [["x", None], [None, "y"]]) == "a  b\n----\nx\n   y"
    assert markdown_table(["a", "b"], [["x", None], [None, "y"]]).splitlines()[2:] == ["| x |  |", "|  | y |"]


def test_an_edge_within_a_cell_is_none() -> None:
    assert markdown_table(["a|b", "c"], [["x|y", r"z\|z"]]).splitlines() == [
        r"| a\|b | c |",
        "|---|---|",
        r"| x\|y | z\|z |",
    ]
    assert text_table(["a|b"], [["x|y"]]).splitlines()[2] == "x|y"


def test_markdown_says_how_columns_are_aligned_where_asked() -> None:
    assert markdown_table(["a", "b", "c"], [["x", 1, "z"]], "lr-").splitlines() == [
        "| a | b | c |",
        "|:---|---:|---|",
        "| x | 1 | z |",
    ]


def test_tables_without_rows() -> None:
    assert text_table(["a", "bc"], []) == "a  bc\n-----"
    assert markdown_table(["a", "bc"], []) == "| a | bc |\n|---|---|"
