import hashlib

import pytest

from inference.errors import ForbiddenError, RateLimitedError, UnauthorizedError
from inference.keys import KeyFileError, KeyRing, new_key
from inference.queueing import Priority

KEY = "k" * 40


def _file(tmp_path, text):
    path = tmp_path / "keys.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def _ring(tmp_path, text, clock=lambda: 0.0):
    return KeyRing(_file(tmp_path, text), clock)


def test_a_key_is_found_by_itself_or_by_its_digest(tmp_path):
    key, digest = new_key()
    assert hashlib.sha256(key.encode()).hexdigest() == digest
    ring = _ring(tmp_path, f"""
        [[key]]
        name = "plain"
        key = "{KEY}"
        [[key]]
        name = "hashed"
        sha256 = "{digest}"
        priority = "high"
    """)  # fmt: skip
    assert ring.authenticate(f"Bearer {KEY}").name == "plain"
    assert ring.authenticate(f"bearer  {key} ").name == "hashed"
    assert ring.authenticate(f"Bearer {key}").highest_priority is Priority.HIGH
    assert ring.authenticate(f"Bearer {KEY}").highest_priority is Priority.NORMAL


@pytest.mark.parametrize(
    ("header", "reason"),
    [("", "key_missing"), (KEY, "key_missing"), (f"Basic {KEY}", "key_missing"),
     ("Bearer ", "key_missing"), ("Bearer nobody's", "key_unknown"),
     (f"Bearer {KEY}x", "key_unknown"), ("Bearer \udcff", "key_unknown")],
)  # fmt: skip
def test_without_a_known_key_nobody_comes_in(tmp_path, header, reason):
    ring = _ring(tmp_path, f'[[key]]\nname = "a"\nkey = "{KEY}"\n')
    with pytest.raises(UnauthorizedError) as refusal:
        ring.authenticate(header)
    assert refusal.value.reason == reason
    assert refusal.value.headers == {"www-authenticate": "Bearer"}
    assert KEY not in refusal.value.message


def test_a_key_has_its_own_rate_and_models(tmp_path):
    now = [0.0]
    ring = _ring(
        tmp_path,
        f'[[key]]\nname = "a"\nkey = "{KEY}"\nrequests_per_second = 2\nmodels = ["m"]\n',
        lambda: now[0],
    )
    client = ring.authenticate(f"Bearer {KEY}")
    client.check_rate()
    client.check_rate()
    with pytest.raises(RateLimitedError) as refusal:
        client.check_rate()
    assert refusal.value.reason == "key_rate_limit"
    now[0] = 0.5
    client.check_rate()
    client.check_model("m")
    with pytest.raises(ForbiddenError):
        client.check_model("other")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "key"),
        ("x = [", "TOML"),
        ("[[key]]\nname = 'a'", "either key or sha256"),
        (f"[[key]]\nname = 'a b'\nkey = '{KEY}'", "name"),
        ("[[key]]\nname = 'a'\nkey = 'topsecret'", "32 characters"),
        ("[[key]]\nname = 'a'\nsha256 = 'abc'", "sha256"),
        (f"[[key]]\nname = 'a'\nkey = '{KEY}'\npriority = 'urgent'", "high, normal or low"),
        (f"[[key]]\nname = 'a'\nkey = '{KEY}'\nmodel = 'm'", "model"),
        (f"[[key]]\nname = 'a'\nkey = '{KEY}'\n[[key]]\nname = 'b'\nkey = '{KEY}'", "twice"),
        (f"[[key]]\nname = 'a'\nkey = '{KEY}'\n[[key]]\nname = 'a'\nkey = '{KEY}1'", "twice"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_and_without_the_key(tmp_path, text, says):
    with pytest.raises(KeyFileError) as refusal:
        _ring(tmp_path, text)
    assert says in str(refusal.value)
    assert "keys.toml" in str(refusal.value)
    assert KEY not in str(refusal.value)
    assert "topsecret" not in str(refusal.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(KeyFileError, match="nowhere"):
        KeyRing(tmp_path / "nowhere", lambda: 0.0)
