"""Maps and loops from the command line, on a real stack."""

from __future__ import annotations

import json
from pathlib import Path

from tests.acceptance.town import Place

REPEATED = """
workflow: repeated
version: 1
output: {doubled: each, rounds: again}
steps:
  each:
    map:
      over: input.rows
      item: row
      max_concurrency: 2
      each: {task: demo.echo, with: {value: "{'value': [index, row * 2]}"}}
  again:
    task: demo.echo
    with: {value: "{'value': iteration}"}
    needs: [each]
    loop: {back_to: again, until: iteration == 2, max: 5}
"""


def test_a_run_with_a_map_and_a_loop_comes_to_its_result_and_shows_both(town: Place, tmp_path: Path) -> None:
    path = tmp_path / "repeated.yaml"
    path.write_text(REPEATED)
    run = town.ok("run", str(path), "--input", json.dumps({"rows": [1, 2, 3]})).strip()
    watched = town.cli("runs", "watch", run)
    assert watched.returncode == 0, watched.stderr
    shown = town.json("runs", "show", run)
    each, again = shown["steps"]
    assert each["tally"] == {"items": 3, "done": 3, "good": 3, "active": 0}
    assert (again["state"], again["iteration"]) == ("SUCCEEDED", 2)
    assert [value["value"] for value in shown["output"]["doubled"]] == [[0, 2], [1, 4], [2, 6]]
    assert shown["output"]["rounds"] == {"value": 2}
    told = town.ok("runs", "show", run)
    assert "3 of 3 items done" in told
    assert "again#2" in told
