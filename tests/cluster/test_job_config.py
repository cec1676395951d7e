"""The config of a job: the same when it is read back, absolute paths, no secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.job_config import absolute_uri, as_yaml, job_config, tracking_variables
from rlsys.config import bundled
from rlsys.config.part import ConfigError
from rlsys.config.run import RunConfig, load, parse


def read_back(config: RunConfig, folder: Path) -> RunConfig:
    file = folder / "sent.yaml"
    file.write_text(as_yaml(config), encoding="utf-8")
    return load(file)


def run_tree(**more: object) -> dict[str, object]:
    return {"output_dir": "/out", "model": {"path": "/model"}, **more}


OVERRIDES = (
    ("tracking.run_name=two words", "two words"),
    ("tracking.run_name=a # b", "a # b"),
    ("tracking.run_name=it's", "it's"),
    ("""tracking.run_name='say "yes"; $(rm x) `y` $HOME \\\\ é 日'""", 'say "yes"; $(rm x) `y` $HOME \\\\ é 日'),
    ('tracking.run_name="two\\nlines"', "two\nlines"),
    ('tracking.run_name="010"', "010"),
    ('tracking.run_name="1.5e3"', "1.5e3"),
    ('tracking.run_name="None"', "None"),
    ('tracking.run_name="true"', "true"),
    ("tracking.run_name=\u5bb6\u3000\U0001f468\u200d\U0001f469", "\u5bb6\u3000\U0001f468\u200d\U0001f469"),
)


@pytest.mark.parametrize(("override", "value"), OVERRIDES)
def test_an_overridden_text_is_the_same_on_the_cluster(tmp_path: Path, override: str, value: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: /out\nmodel: {path: /model}\n")
    sent = job_config(load(file, [override]))
    assert sent.tracking.run_name == value
    assert read_back(sent, tmp_path) == sent


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), max_size=250).map(str.strip).filter(bool))
def test_any_text_is_the_same_on_the_cluster(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    config = parse(run_tree(tracking={"experiment": text}), source="test")
    assert read_back(config, tmp_path_factory.getbasetemp()).tracking.experiment == text


def test_lists_small_numbers_and_infinities_are_the_same_on_the_cluster(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: /out\nmodel: {path: /model}\n")
    overrides = [
        "train.betas=[0.9, 0.95]",
        "train.learning_rate=1.0e-7",
        "reward.settings.relative_error_tiers=[[0.1, 1], [.inf, 0]]",
        'reward.judge.urls=["http://a:8000/v1", "http://b:8000/v1"]',
        "reward.weights={captioning: {polite: 0.5}}",
        "reward.scorers={polite: 'my_rewards:says_please'}",
    ]
    sent = job_config(load(file, overrides))
    assert sent.train.learning_rate == 1e-7
    assert sent.reward.settings.relative_error_tiers == ((0.1, 1.0), (float("inf"), 0.0))
    assert read_back(sent, tmp_path) == sent


@pytest.mark.parametrize("name", [name for name in bundled.names() if not name.startswith("judge_")])
def test_a_bundled_config_is_the_same_on_the_cluster(tmp_path: Path, name: str) -> None:
    sent = job_config(load(Path(name)))
    assert read_back(sent, tmp_path) == sent


def test_every_path_means_what_it_means_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCH", "scratch")
    (tmp_path / "judges" / "tiny").mkdir(parents=True)
    tree = {
        "output_dir": "runs/x",
        "model": {"path": "/models/qwen"},
        "data": {"annotations": "$SCRATCH/a.json", "videos": "clips"},
        "evaluation": {"annotations": "b.json", "videos": "held out"},
        "sft": {"responses": "r.jsonl"},
        "reward": {"judge": {"serve_model": "judges/tiny", "cache_path": "verdicts.db"}},
        "tracking": {"uri": "sqlite:///mlflow.db"},
    }
    sent = job_config(parse(tree, source="test"))
    assert sent.output_dir == tmp_path / "runs/x"
    assert sent.model.path == Path("/models/qwen")
    assert (sent.data.annotations, sent.data.videos) == (tmp_path / "scratch/a.json", tmp_path / "clips")
    assert (sent.evaluation.annotations, sent.evaluation.videos) == (tmp_path / "b.json", tmp_path / "held out")
    assert sent.sft.responses == tmp_path / "r.jsonl"
    assert sent.reward.judge.serve_model == str(tmp_path / "judges/tiny")
    assert sent.reward.judge.cache_path == tmp_path / "verdicts.db"
    assert sent.tracking.uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_models_name_is_no_path() -> None:
    config = parse(run_tree(reward={"judge": {"serve_model": "Qwen/Qwen2.5-72B-Instruct"}}), source="test")
    assert job_config(config).reward.judge.serve_model == "Qwen/Qwen2.5-72B-Instruct"


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///mlflow.db", "sqlite:////here/mlflow.db"),
        ("sqlite+pysqlite:///a/b.db?timeout=5", "sqlite+pysqlite:////here/a/b.db?timeout=5"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("mlruns", "/here/mlruns"),
        ("./mlruns", "/here/mlruns"),
        ("/data/mlruns", "/data/mlruns"),
        ("file:./mlruns", "file:/here/mlruns"),
        ("file:///data/mlruns", "file:///data/mlruns"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("postgresql+psycopg2://me@db/mlflow", "postgresql+psycopg2://me@db/mlflow"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
    ],
)
def test_a_store_in_a_file_gets_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, absolute: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri(uri) == absolute.replace("/here", str(tmp_path))


def test_a_store_whose_path_only_sqlite_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"write sqlite:////folder/mlflow\.db"):
        absolute_uri("sqlite:///file:mlflow.db?uri=true")


@pytest.mark.parametrize(
    ("section", "shown", "remedy"),
    [
        ({"tracking": {"uri": "postgresql://me:hunter2@db/mlflow"}}, r"tracking\.uri=postgresql://me:\*\*\*@db", "URI"),
        ({"tracking": {"uri": "http://hunter2@mlflow:5000"}}, r"tracking\.uri=http://\*\*\*@", "MLFLOW_TRACKING_TOKEN"),
        (
            {"reward": {"judge": {"urls": ["http://a/v1", "http://me:hunter2@b/v1"]}}},
            r"reward\.judge\.urls=http://me:\*\*\*@b/v1",
            "api_key_env",
        ),
    ],
)
def test_a_url_with_a_password_is_refused_without_repeating_it(
    section: dict[str, object], shown: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=shown) as caught:
        job_config(parse(run_tree(**section), source="test"))
    assert remedy in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_store_and_its_secrets_of_here_are_for_the_job_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {
        "MLFLOW_TRACKING_URI": "https://me:hunter2@mlflow:5000",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "hunter2",
        "MLFLOW_TRACKING_TOKEN": "hunter3",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    sent = job_config(parse(run_tree(), source="test"))
    assert tracking_variables(sent) == given
    assert "hunter" not in as_yaml(sent)
    named = parse(run_tree(tracking={"uri": "http://mlflow:5000"}), source="test")
    assert "MLFLOW_TRACKING_URI" not in tracking_variables(named)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert tracking_variables(sent)["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    for name in given:
        monkeypatch.delenv(name)
    assert tracking_variables(sent) == {}


def test_the_paths_of_every_source_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [
        {"annotations": "a.json", "videos": "/clips", "weight": 1.0},
        {"annotations": "/b.json", "weight": 2.0},
    ]
    sent = job_config(parse(run_tree(data={"videos": "v", "sources": given}), source="test"))
    assert sent.data.videos == tmp_path / "v"
    assert [(one.annotations, one.videos) for one in sent.data.sources] == [
        (tmp_path / "a.json", Path("/clips")),
        (Path("/b.json"), None),
    ]
    assert read_back(sent, tmp_path) == sent
