"""The decisions of the demo; the run itself is `make demo`."""

from pathlib import Path

from rlsys.demo.grounding import set_aside, verdict


def results(greedy_after: float, shuffled: float) -> dict[str, dict[str, dict[str, float]]]:
    def metrics(miou: float) -> dict[str, float]:
        return {"miou": miou, "format": 0.9, "reward": 0.9 + miou}

    return {
        "cold_start": {"sampled": metrics(0.5), "greedy": metrics(0.6)},
        "grpo": {"sampled": metrics(0.64), "greedy": metrics(greedy_after)},
        "more_sft": {"sampled": metrics(0.6), "greedy": metrics(0.7)},
        "constant_interval": {"sampled": {"miou": 0.4}},
        "shuffled_video": {"sampled": metrics(shuffled), "greedy": metrics(shuffled)},
    }


SECONDS = {"collect": 50.0, "update": 20.0, "sync": 5.0, "record": 1.0, "more_sft": 80.0}


def test_the_verdict_follows_the_numbers_and_not_our_hopes() -> None:
    sharpened = " ".join(verdict(results(greedy_after=0.61, shuffled=0.3), SECONDS))
    assert "hardly improved localisation" in sharpened and "the skill comes from the video" in sharpened
    blind = " ".join(verdict(results(greedy_after=0.75, shuffled=0.62), SECONDS))
    assert "improved localisation as well" in blind and "no skill is shown" in blind
    assert "GRPO (76 s)" in blind and "(80 s)" in blind


def test_an_earlier_demo_is_moved_aside_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "mlflow.db").write_text("kept")
    (tmp_path / "thesis.tex").write_text("kept")
    set_aside(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"previous", "mlflow.db", "thesis.tex"}
    assert {path.name for path in (tmp_path / "previous" / "1").iterdir()} == {"summary.json", "data"}
    set_aside(tmp_path)
    assert [path.name for path in (tmp_path / "previous").iterdir()] == ["1"]
