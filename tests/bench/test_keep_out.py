"""`make keep-out`: a problem of each scene, by the fastest planner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from grasp_bench import keep_out


def test_tables_and_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, figure = tmp_path / "page.md", tmp_path / "figures" / "keep-out.png"
    page.write_text(f"Before\n{keep_out.BEGIN}\nold\n{keep_out.END}\nafter\n")
    monkeypatch.setattr(keep_out, "NAMES", {"cem": {}})
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of all tests after this one
    arguments = ["--problems", "1", "--page", str(page), "--figure", str(figure)]
    monkeypatch.setattr("sys.argv", ["keep_out.py", *arguments])
    keep_out.main()
    text = page.read_text()
    assert text.startswith("Before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| cem | ") == 2 * len(keep_out.METHODS)
    assert figure.stat().st_size > 10_000


def test_a_disc_is_in_the_way_and_can_be_gone_round() -> None:
    scene = keep_out.open_room(3, 0)
    straight = torch.lerp(
        scene.start[:, None], scene.goal[:, None], torch.linspace(0, 1, 51)[:, None]
    )
    actions = torch.zeros(3, 50, 2)
    assert (scene.depth(straight, actions, scene.centre).amax(1) > 0.05).all()
    (line,) = keep_out.measure(keep_out.open_room(1, 0), "cem", keep_out.RAISED)
    assert line["arrived"]
    assert line["violation"] <= keep_out.TOLERANCE
