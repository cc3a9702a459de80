"""Keys are random, compared in constant time, sealed for one engine, and never shown."""

import re

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from enginegate import keys
from enginegate.keys import Keyring, KeyUnsealError

OLD, NEW = keys.new_master_key(), keys.new_master_key()


@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (keys.new_engine_key, "sk-eg-"),
        (keys.new_platform_key, "pk-eg-"),
        (keys.new_admin_key, "ak-eg-"),
    ],
)
def test_a_new_key_says_what_it_is_for(make: object, prefix: str) -> None:
    """A prefix that leak scanners can find, then 43 URL-safe characters of randomness."""
    assert callable(make)
    made = {make() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(re.escape(prefix) + r"[A-Za-z0-9_-]{43}", key) for key in made)


def test_a_digest_is_the_sha_256_of_the_key() -> None:
    """Engines check the same hash, so it is the plain one."""
    known = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
    assert keys.digest_hex("foo") == known
    assert keys.digest(b"foo") == keys.digest("foo") == bytes.fromhex(known)


@given(st.text(), st.text())
def test_only_equal_secrets_are_the_same(a: str, b: str) -> None:
    """Any text may be compared, also one that no header could carry."""
    assert keys.same(a, a.encode())
    assert keys.same(a, b) == (a == b)


@pytest.mark.parametrize(
    "wrong", ["", "short", "x" * 44, NEW[:-1], NEW + "\n", NEW.replace(NEW[3], "+"), "é" * 43 + "="]
)
def test_a_master_key_is_a_fernet_key_and_nothing_else(wrong: str) -> None:
    """What the Fernet library would take by mistake or refuse late is refused at once."""
    assert keys.valid_master_key(NEW)
    assert not keys.valid_master_key(wrong)
    with pytest.raises(ValueError, match=r"^master key 2 is not a Fernet key$"):
        Keyring([NEW, wrong])


def test_a_keyring_needs_a_key() -> None:
    """Without one there is nothing to seal with."""
    with pytest.raises(ValueError, match="no master key"):
        Keyring([])


@given(st.uuids().map(str), st.text(st.characters(codec="ascii"), max_size=60))
def test_what_was_sealed_for_an_engine_opens_for_it(engine_id: str, key: str) -> None:
    """Sealing hides the key and loses nothing."""
    ring = Keyring([NEW])
    sealed = ring.seal(engine_id, key)
    assert ring.open(engine_id, sealed) == key


def test_a_key_cannot_be_moved_to_another_engine() -> None:
    """The engine's id is inside the seal: swapping two lines of a file does not swap keys."""
    ring = Keyring([NEW])
    with pytest.raises(KeyUnsealError, match="engine-b was sealed for another engine") as caught:
        ring.open("engine-b", ring.seal("engine-a", "sk-eg-1"))
    assert caught.value.engine_id == "engine-b"


def test_what_an_old_key_sealed_still_opens_and_asks_to_be_sealed_anew() -> None:
    """The first key seals, every one opens: a new master key needs no downtime."""
    sealed = Keyring([OLD]).seal("e", "secret")
    both = Keyring([NEW, OLD])
    assert both.open("e", sealed) == "secret"
    assert both.needs_reseal(sealed)
    assert not both.needs_reseal(both.seal("e", "secret"))
    assert Keyring([NEW]).open("e", both.seal("e", "secret")) == "secret"


def test_what_an_earlier_version_sealed_opens_and_stays_as_it_is() -> None:
    """Fernet tokens of the same master key: nothing has to be sealed anew for an upgrade."""
    token = Fernet(NEW).encrypt(b"e\nsecret").decode()
    ring = Keyring([OLD, NEW])
    assert ring.open("e", token) == "secret"
    assert Keyring([NEW]).reseal("e", token) == token
    assert Keyring([OLD]).open("e", ring.reseal("e", token)) == "secret"


@pytest.mark.parametrize(
    "sealed",
    [
        "",
        "nonsense",
        "é",
        "gcm1.",
        "gcm1.é",
        "gcm1.AAAA",
        f"gcm1.{'A' * 80}",
        Keyring([OLD]).seal("e", "secret"),
        Fernet(OLD).encrypt(b"e\nsecret").decode(),
    ],
)
def test_what_no_key_opens_is_told_without_the_secret(sealed: str) -> None:
    """A wrong master key, or damage: the error names the engine alone."""
    with pytest.raises(KeyUnsealError) as caught:
        Keyring([NEW]).open("e", sealed)
    assert str(caught.value) == "the sealed key of engine e opens with none of the master keys"


def test_a_sealed_key_changed_by_one_character_opens_no_more() -> None:
    """Damage is noticed, wherever it is."""
    ring = Keyring([NEW])
    sealed = ring.seal("e", "secret")
    for at in range(len(sealed) - 4):  # the last characters hold padding, which means nothing
        other = "A" if sealed[at] != "A" else "B"
        with pytest.raises(KeyUnsealError):
            ring.open("e", sealed[:at] + other + sealed[at + 1 :])


def test_a_master_key_is_known_by_a_name_that_gives_nothing_away() -> None:
    """The journal notes which key sealed it, and can say so when the wrong one is given."""
    ring = Keyring([NEW, OLD])
    assert ring.key_id == Keyring([NEW]).key_id == ring.key_ids[0]
    assert ring.key_ids[1] == Keyring([OLD]).key_id != ring.key_id
    assert re.fullmatch("[0-9a-f]{16}", ring.key_id)


def test_a_keyring_shows_no_key() -> None:
    """Logs and tracebacks may print it."""
    assert repr(Keyring([NEW, OLD])) == str(Keyring([NEW])) == "Keyring(***)"


def test_resealing_moves_a_key_under_the_first_master_key() -> None:
    """What an older key sealed opens with the new one alone; what is sealed so stays as it is."""
    ring = Keyring([NEW, OLD])
    sealed = Keyring([OLD]).seal("e", "secret")
    again = ring.reseal("e", sealed)
    assert Keyring([NEW]).open("e", again) == "secret"
    assert ring.reseal("e", again) == again
    with pytest.raises(KeyUnsealError):
        ring.reseal("f", sealed)


def test_only_a_ring_of_several_keys_seals_anew() -> None:
    """With one key there is nothing that another has sealed."""
    ring = Keyring([NEW, OLD])
    assert ring.resealer is ring
    assert Keyring([NEW]).resealer is None
