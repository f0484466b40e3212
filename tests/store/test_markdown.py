"""Tables in Markdown."""

from tsae.store.markdown import escaped, markdown_table


def test_a_table_by_hand() -> None:
    rows: list[dict[str, object]] = [{"layer": 1, "NMSE": 0.5}, {"layer": 2, "NMSE": escaped("a | b\nc")}]
    assert markdown_table(rows) == "| layer | NMSE |\n| --- | ---: |\n| 1 | 0.5 |\n| 2 | a \\| b c |"
    assert markdown_table(rows[:1], others="---").splitlines()[1] == "| --- | --- |"
