"""Pitfalls of YAML and of hand-written configs, each of which is read as intended or refused with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlsys.config.reading import MAX_BYTES, apply_override, read_tree
from rlsys.config.run import ConfigError, RunConfig, load, load_services

MINIMAL = "output_dir: out\nmodel: {path: m}\n"


def loaded(folder: Path, text: str = "", *overrides: str) -> RunConfig:
    file = folder / "run.yaml"
    file.write_text(MINIMAL + text)
    return load(file, overrides)


def tree_of(folder: Path, content: str | bytes) -> dict[str, Any]:
    file = folder / "run.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_tree(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {num_steps: 1}\ntrain: {betas: [0.9, 0.95]}\n", "train is given twice, in lines 3 and 4"),
        ("train:\n  num_steps: 1\n  num_steps: 2\n", "num_steps is given twice, in lines 4 and 5"),
        ("reward: {weights: {captioning: {format: 1, format: 2}}}\n", "format is given twice"),
        ("seed: None\n", "write null"),
        ("tracking: {uri: None}\n", "write null"),
        ("train: {learning_rate: .inf}\n", "train.learning_rate: Input should be a finite number"),
        ("train: {learning_rate: inf}\n", "train.learning_rate: Input should be a finite number"),
        ("train: {learning_rate: 1e999}\n", "train.learning_rate: Input should be a finite number"),
        ("train: {learning_rate: .nan}\n", "train.learning_rate"),
        ("train: {learning_rate: 2e6}\n", "train.learning_rate"),
        ("train: {weight_decay: .inf}\n", "finite"),
        ("train: {betas: [0.9, 1.5]}\n", "train.betas.1: Input should be less than 1"),
        ("train: {betas: [-0.1, 0.9]}\n", "train.betas.0"),
        ("train: {betas: [0.9, .nan]}\n", "train.betas.1"),
        ("train: {num_steps: yes}\n", "train.num_steps: expected a number, not true"),
        ("train: {betas: [no, 0.9]}\n", "train.betas: expected a number, not false"),
        ("reward: {weights: {captioning: {format: yes}}}\n", "reward.weights: expected a number, not true"),
        ("reward: {settings: {recall_tiers: [[0.1, on]]}}\n", "recall_tiers: expected a number, not true"),
        ("train: {learning_rate: on}\n", "train.learning_rate: expected a number, not true"),
        ("train: {num_steps: 1:30}\n", "train.num_steps"),
        ("rollout: {temperature: .inf}\n", "rollout.temperature: Input should be a finite number"),
        ("rollout: {temperature: 1.0e-9}\n", "no advantages"),
        ("reward: {settings: {recall_tiers: [[0.1, .nan]]}}\n", "reward.settings.recall_tiers"),
        ("reward: {timeout_s: .inf}\n", "reward.timeout_s"),
        ("seed: 18446744073709551616\n", "seed: Input should be less than 4294967296"),
        ("tracking: {run_name: 5}\n", "put it in quotes"),
        ("a: !!python/object/apply:os.system [ls]\n", "not YAML"),
        ("---\nseed: 1\n", "not YAML"),
        ("a: &a [*a]\n", "contains itself"),
        ("1: 2\n", "1: "),
        ("tracking: {log_model: !!bool maybe}\n", "cannot be read as its tag says"),
        ("tracking: {run_name: !!timestamp abc}\n", "cannot be read as its tag says"),
        ("tracking: {run_name: none}\n", "tracking.run_name: none is plain text in YAML; write null"),
        ("tracking: {uri: nil}\n", "tracking.uri: nil is plain text"),
        ("tracking: {uri: ' '}\n", "tracking.uri: an empty address"),
        ("tracking: {experiment: ''}\n", "tracking.experiment"),
        (f"tracking: {{experiment: {'x' * 600}}}\n", "tracking.experiment"),
        ('tracking: {run_name: "a\\ud800b"}\n', "contains the character U+D800"),
        ('tracking: {run_name: "a\\x1b[31mb"}\n', "contains the character U+001B"),
        ('tracking: {run_name: "a\\0b"}\n', "contains a NUL character"),
        ("train: {num_steps: 1000000000000000000000}\n", "train.num_steps: 1e+21 is above 1e+15"),
        (f"train: {{num_steps: {'9' * 5000}}}\n", "the number in line 3 has more than 100 digits"),
        (f"train: {{num_steps: 0x{'f' * 5000}}}\n", "the number in line 3 has more than 100 digits"),
        (f"train: {{num_steps: !!int '-{'9' * 101}'}}\n", "the number in line 3 has more than 100 digits"),
        (f"train: {{num_steps: {'9' * 100}}}\n", "train.num_steps: 1e+100 is above 1e+15"),
        ("reward: {timeout_s: 1.0e+300}\n", "reward.timeout_s: 1e+300 is above 1e+08 seconds"),
        ("rollout: {temperature: 1.0e+300}\n", "rollout.temperature"),
        ("data: {max_frames: 10000000000000}\n", "data.max_frames"),
        ("data: {fps: 1.0e+12}\n", "data.fps"),
        ("data: {videos: ' '}\n", "data.videos: an empty path"),
        ("data: {videos: 's3://bucket/videos'}\n", "data.videos: s3://bucket/videos is a URL"),
        ("data: {videos: 'http://me:hunter2@host'}\n", "data.videos: http://me:***@host is a URL"),
        ("reward: {url: 'ftp://host'}\n", "reward.url=ftp://host does not start with http"),
        ("reward: {url: 'localhost:8000'}\n", "does not start with http"),
        ("reward: {url: 'http://'}\n", "has no host"),
        ("reward: {url: 'http://host:99999'}\n", "is not a URL"),
        ("reward: {url: 'http://a host'}\n", "contains a space"),
    ],
)
def test_a_trap_is_an_error_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, text)
    assert str(tmp_path / "run.yaml") in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2026-11-28", "2026-11-28"),
        ("0b11", "0b11"),
        ("0o17", "0o17"),
        ("1.2.3", "1.2.3"),
        ("10", 10),
        ("-3", -3),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0", 0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1.5e-4", 1.5e-4),
        ("-.inf", float("-inf")),
        ("yes", True),
        ("null", None),
        ('"None"', "None"),
        ("'~'", "~"),
    ],
)
def test_plain_values_have_their_obvious_meaning(tmp_path: Path, text: str, value: object) -> None:
    assert tree_of(tmp_path, f"a: {text}\n") == {"a": value}


def test_a_number_with_leading_zeros_is_decimal(tmp_path: Path) -> None:
    assert loaded(tmp_path, "seed: 010\n").seed == 10
    assert loaded(tmp_path, "", "train.num_steps=010").train.num_steps == 10


def test_a_number_without_a_point_is_a_number_of_the_field(tmp_path: Path) -> None:
    assert loaded(tmp_path, "train: {learning_rate: 1e-4}\n").train.learning_rate == 1e-4


def test_anchors_and_merged_mappings_still_work(tmp_path: Path) -> None:
    text = "a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\nc: *base\n"
    assert tree_of(tmp_path, text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("kind", ["lists", "mappings", "merges"])
def test_an_alias_bomb_is_refused_by_its_size(tmp_path: Path, kind: str) -> None:
    """Eleven levels of nine aliases are 3e10 values. Counting visits the 100 written ones; expanding takes hours."""
    first = {"lists": "[x, y]", "mappings": "{x: 1, y: 2}", "merges": "{x: 1, y: 2}"}[kind]
    lines = [f"a0: &a0 {first}"]
    for level in range(1, 12):
        names = [f"*a{level - 1}"] * 9
        value = {
            "lists": f"[{', '.join(names)}]",
            "mappings": "{" + ", ".join(f"k{index}: {name}" for index, name in enumerate(names)) + "}",
            "merges": "{<<: [" + ", ".join(names) + "]}",
        }[kind]
        lines.append(f"a{level}: &a{level} {value}")
    with pytest.raises(ConfigError, match="more than 100000 values"):
        tree_of(tmp_path, "\n".join(lines))


@pytest.mark.parametrize("text", ["[" * 1_000, "a: " + "[" * 1000 + "]" * 1000, "- " * 1_000 + "x"])
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="nested too deeply|not YAML"):
        tree_of(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("seed: 1\nname: \xe9\n".encode("latin-1"), "not UTF-8 (line 2, byte 14)"),
        ("seed: 1\n".encode("utf-16"), "not UTF-8"),
        ("seed: 1\n".encode("utf-16-le"), "not UTF-8"),
        ("seed: 1\n".encode("utf-32-be"), "not UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
        (b"a: \x00\n", "not UTF-8"),
        (b"a: \x07\n", "not YAML"),
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n", "this is list"),
        (b"a: 1\n" * (MAX_BYTES // 5 + 1), "so not a config file"),
        (b"a: " + b"9" * 5000, "the number in line 1 has more than 100 digits"),
        (b"a: 0x_\n", "a number cannot be read"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        tree_of(tmp_path, content)
    assert says in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert tree_of(tmp_path, "seed: 1\n".encode("utf-8-sig")) == {"seed": 1}


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tree(tmp_path)


def test_a_section_with_only_comments_is_a_section_of_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, "train:\n  # num_steps: 3\nreward:\n  judge:\n    # urls: []\n")
    assert config == loaded(tmp_path)
    assert loaded(tmp_path, "reward:\n", "reward.judge.model=x").reward.judge.model == "x"
    (tmp_path / "judge.yaml").write_text("reward:\n# nothing\n")
    assert load_services(tmp_path / "judge.yaml").reward.url is None


def test_a_required_section_with_only_comments_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("output_dir: out\nmodel:\n  # path: m\n")
    with pytest.raises(ConfigError, match=r"model\.path: is required; set it"):
        load(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("a.b=/data/clips #2", "/data/clips #2"),
        ("a.b=#3", "#3"),
        ("a.b=http://host/#part", "http://host/#part"),
        ('a.b="/data/clips #2"', "/data/clips #2"),
        ("a.b=5 # five", "5 # five"),
        ("a.b=", None),
        ("a.b= 7 ", 7),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b={c: 1}", {"c": 1}),
        ("a.b=x=y", "x=y"),
        ("a.b=1:30", "1:30"),
    ],
)
def test_a_number_sign_on_the_command_line_is_no_comment(override: str, value: object) -> None:
    tree: dict[str, Any] = {}
    apply_override(tree, override)
    assert tree == {"a": {"b": value}}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("a.b=[1, 2] # two", "drops everything after #"),
        ("a.b={c: 1} #", "drops everything after #"),
        ("a.b=@x", "quote it"),
        ("a.b=[", "quote it"),
        ("a.b=None", "write null"),
        ("a.b=&x y", "quote it"),
        ("a.b=|", "quote it"),
        ("a.b=>", "quote it"),
        ("a.b=---", "quote it"),
        ("a.b={c: 1, c: 2}", "given twice"),
        (f"list.{'9' * 5000}=x", "is no entry of a list of 2"),
    ],
)
def test_a_senseless_override_is_refused(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply_override({"list": [1, 2]}, override)
    assert says in str(error.value)


def test_home_and_variables_are_filled_into_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    config = loaded(
        tmp_path,
        "data: {videos: ~/clips, annotations: '${SCRATCH}/a$5.json'}\n"
        "reward: {judge: {serve_model: ~/judge, cache_path: $SCRATCH/verdicts.db}}\n"
        "tracking: {uri: 'sqlite:///$SCRATCH/mlflow.db'}\n",
        "output_dir=$SCRATCH/run",
        "model.path=~/models/tiny",
    )
    assert (config.output_dir, config.model.path) == (Path("/scratch/me/run"), Path("/home/me/models/tiny"))
    assert (config.data.videos, config.data.annotations) == (Path("/home/me/clips"), Path("/scratch/me/a$5.json"))
    assert config.reward.judge.serve_model == "/home/me/judge"
    assert config.reward.judge.cache_path == Path("/scratch/me/verdicts.db")
    assert config.tracking.uri == "sqlite:////scratch/me/mlflow.db"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("$NO_SUCH_VARIABLE/x", "NO_SUCH_VARIABLE is not set"),
        ("~no_such_user_here/x", "write the full path"),
        ('"a\\0b"', "NUL"),
        ('""', "an empty path"),
    ],
)
def test_a_path_that_cannot_be_filled_in_is_refused(tmp_path: Path, path: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, f"data: {{videos: {path}}}\n")
    assert "data.videos: " in str(error.value)
    assert says in str(error.value)


SECRETS = (
    "reward.url=http://me:hunter2@host:8000",
    "reward.url=http://host:8000/?api_key=hunter2",
    "tracking.url=http://me:hunter2@host",
    "data.videos=[http://me:hunter2@host]",
)


@pytest.mark.parametrize("override", SECRETS)
def test_a_secret_in_a_url_is_refused_and_never_shown(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, "", override)
    assert "hunter2" not in str(error.value)
    assert override.partition("=")[0] in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000",
        "postgresql://me@db/mlflow",
        "sqlite:////data/a:b@c.db",
        "databricks://profile",
        "file:///x@y",
    ],
)
def test_a_url_without_a_secret_is_kept(tmp_path: Path, uri: str) -> None:
    assert loaded(tmp_path, "", f"tracking.uri={uri}").tracking.uri == uri


def test_a_huge_wrong_value_is_not_repeated_whole(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, f"seed: [{'x, ' * 4_000}]\n")
    assert len(str(error.value)) < 1000
