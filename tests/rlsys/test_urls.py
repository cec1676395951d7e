"""Secrets in addresses are never shown."""

from __future__ import annotations

import pytest

from rlsys.urls import has_secret, masked_tree, masked_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////runs/a@b:c/mlflow.db", "sqlite:////runs/a@b:c/mlflow.db"),
        ("https://me:hunter2@host:5000/path", "https://me:***@host:5000/path"),
        ("postgresql+psycopg2://me:p@ss:w@rd@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("https://glpat-abc@host/", "https://***@host/"),
        ("https://:hunter2@host/", "https://***@host/"),
        ("mysql://me:@host/db", "mysql://me:***@host/db"),
        ("https://host/v1?api-version=3&api_key=abc&x=1", "https://host/v1?api-version=3&api_key=***&x=1"),
        ("postgresql://host/db?user=me&password=hunter2", "postgresql://host/db?user=me&password=***"),
        ("no answer from http://me:pw@h/a, tried http://me:pw@h/b", "no answer from http://me:***@h/a, tried http://me:***@h/b"),
        ("not a URL: a@b:c", "not a URL: a@b:c"),
    ],
)  # fmt: skip
def test_what_is_secret_in_a_url_is_masked(url: str, shown: str) -> None:
    assert masked_url(url) == shown
    assert has_secret(url) == (url != shown)
    assert masked_url(shown) == shown


def test_a_config_is_masked_wherever_an_address_is_in_it() -> None:
    tree = {"tracking": {"uri": "http://a:b@c"}, "urls": ["http://a:b@d", 1], "none": None}
    assert masked_tree(tree) == {"tracking": {"uri": "http://a:***@c"}, "urls": ["http://a:***@d", 1], "none": None}


@pytest.mark.parametrize(
    "url",
    [
        "http://h/?pass=hunter2",
        "http://h/?a=1;token=hunter2",
        "http://h/#access_token=hunter2",
        "http://h/?X-Amz-Credential=hunter2",
        "http://h/?authorization=hunter2&b=2",
        "postgresql://h/db?user=me&passphrase=hunter2",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dhunter2",
        "http://h/cb?code=hunter2&state=1",
        "http://h/?auth_code=hunter2",
        "http://h/?code_verifier=hunter2",
        "http://h/?session=hunter2",
        "http://h/?session_id=hunter2",
        "http://h/;jsessionid=hunter2?a=1",
        "http://h/?PHPSESSID=hunter2",
        "http://h/?sid=hunter2",
        "http://h/?sas=hunter2",
        "https://a.blob.core.windows.net/c?sv=1&sr=b&sig=hunter2&se=2",
        "http://h/?jwt=hunter2",
        "http://h/?client_assertion=hunter2",
        "http://h/?client_secret=hunter2",
        "http://h/?client%5Fsecret=hunter2",
        "http://h/?SAMLResponse=hunter2",
        "http://h/?user[password]=hunter2",
        "http://h/?X-Amz-Security-Token=hunter2&X-Amz-Signature=hunter2",
        "http://h/?AWSAccessKeyId=hunter2",
        "http://h/?Key-Pair-Id=hunter2",
        "Endpoint=sb://h/;SharedAccessKey=hunter2",
        "http://h/?to=http%3A%2F%2Fg%2F%3Ftoken%3Dhunter2",
        "http://h/?to=http%3A%2F%2Fg%2F%3Fa%3D1%26code%3Dhunter2",
        "postgresql://me:hun/hunter2@h:5432/db",
    ],
)
def test_a_secret_is_masked_wherever_a_url_carries_it(url: str) -> None:
    assert has_secret(url)
    assert "hunter2" not in masked_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://h/?country_code=de&zipcode=1&decode=1",
        "http://h/?ssid=1&session_length=3&passage=2&author=me&keyboard=us",
        "http://h:8080/a@b",
        "http://h:8080/v1?to=a@b",
        "http://h/v1?api-version=3",
    ],
)
def test_what_only_resembles_a_secret_stays(url: str) -> None:
    assert masked_url(url) == url and not has_secret(url)
