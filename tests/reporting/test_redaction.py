from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reporting.redaction import REMOVED, redact


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("see https://hooks.slack.com/services/T0/B0/abcdef", "T0/B0/abcdef"),
        ("postgres://galen:hunter2@db:5432/journal failed", "hunter2"),
        ("key AKIAIOSFODNN7EXAMPLE used", "AKIAIOSFODNN7EXAMPLE"),
        ("ghp_" + "a" * 36, "a" * 36),
        ("header Authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
        ("xoxb-123456789-abcdefgh", "123456789-abcdefgh"),
        ('{"password": "hunter2"}', "hunter2"),
        ("admin_token=s3cr3t-value", "s3cr3t-value"),
        ("X-Api-Key: s3cr3t", "s3cr3t"),
        ("hf_" + "b" * 30, "b" * 30),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEow cut off", "MIIEow"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
    ],
)
def test_the_usual_shapes_of_secrets_go(text: str, secret: str) -> None:
    assert secret not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "llm_time_per_output_token_seconds is 0.31 s; normal is 0.02 to 0.09 s",
        "time_per_output_token: 0.31 s",
        "tokens: 512",
        "host/box1/gpu/0 reached 91 celsius",
        "The engine has finished no step for 12 s.",
    ],
)
def test_measurements_stay(text: str) -> None:
    assert redact(text) == text


def test_an_address_keeps_its_host() -> None:
    assert redact("http://10.0.0.7:9090/api?x=1 is slow") == "http://10.0.0.7:9090/… is slow"
    assert redact("http://10.0.0.7:9090 is slow") == "http://10.0.0.7:9090 is slow"


@given(st.text(max_size=300))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(text)
    assert redact(once).replace(REMOVED, "") == once.replace(REMOVED, "")
