"""Names, policies and images are allowed or not, by grammar and by list."""

import math

import pytest

from enginegate import policy
from enginegate.model import Policy

DIGEST = "@sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "user_id",
    [
        "a",
        "7",
        "demo-user-001",
        "ann@example.org",
        "auth0|5f7c8ec7c33c6c004bbafe82",
        "A.b_c@d|e:f+g=h~i-j",
        "urn:user:1",
        "x" * 128,
    ],
)
def test_a_user_id_may_be_what_identity_providers_hand_out(user_id: str) -> None:
    """Letters, digits and a few signs, up to 128 characters."""
    assert policy.valid_user_id(user_id)


@pytest.mark.parametrize(
    "user_id",
    [
        "",
        "x" * 129,
        "-a",
        ".a",
        "_a",
        "@a",
        " a",
        "a ",
        "a b",
        "a/b",
        "../a",
        "a\n",
        "a\0",
        "a%20b",
        "a?b",
        "a#b",
        "é",
        "aé",
        "٣",  # an Arabic digit
        "a٣",
        "Ａ",  # noqa: RUF001 - a full-width letter
        "a,b",
        'a"b',
    ],
)
def test_a_user_id_that_could_mean_something_elsewhere_is_refused(user_id: str) -> None:
    """Nothing that a path, a shell, a log or a header reads as more than a name."""
    assert not policy.valid_user_id(user_id)


@pytest.mark.parametrize("slug", ["a", "0", "acme", "acme-2", "a-", "a--b", "x" * 63])
def test_a_slug_is_a_short_name_in_small_letters(slug: str) -> None:
    """Letters, digits and hyphens, first a letter or digit."""
    assert policy.valid_slug(slug)


@pytest.mark.parametrize("slug", ["", "-a", "A", "a_b", "a.b", "a b", "a\n", "é", "٣", "x" * 64])
def test_anything_else_is_no_slug(slug: str) -> None:
    """A slug also names the actor in the audit trail."""
    assert not policy.valid_slug(slug)


@pytest.mark.parametrize(
    "fine",
    [
        Policy(),
        Policy(max_engines=0, rate_limit_rpm=0, user_rate_limit_rpm=0, idle_sleep_s=0),
        Policy(max_engines=250, rate_limit_rpm=6000, user_rate_limit_rpm=60, idle_sleep_s=0.5),
        Policy(max_engines=policy.COUNT_MAX, idle_sleep_s=policy.SECONDS_MAX),
    ],
)
def test_a_policy_may_leave_out_limits_or_set_them_to_zero(fine: Policy) -> None:
    """None is no limit, zero allows nothing (and never sleeps)."""
    assert policy.check_policy(fine) == []


@pytest.mark.parametrize("field", ["max_engines", "rate_limit_rpm", "user_rate_limit_rpm"])
@pytest.mark.parametrize("value", [-1, -(10**30), policy.COUNT_MAX + 1])
def test_a_count_out_of_bounds_is_a_fault(field: str, value: int) -> None:
    """Negative counts mean nothing, and those beyond 2^53 do not survive JSON."""
    (fault,) = policy.check_policy(Policy(**{field: value}))
    assert fault.startswith(f"{field} must be a whole number from 0")


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf, 1e300])
def test_a_sleep_time_that_no_timer_can_count_is_a_fault(value: float) -> None:
    """It must be finite, not negative, and no more than a century."""
    (fault,) = policy.check_policy(Policy(idle_sleep_s=value))
    assert fault.startswith("idle_sleep_s must be a number from 0")


def test_every_fault_of_a_policy_is_told() -> None:
    """Whoever sends it need not mend them one by one."""
    wrong = Policy(max_engines=-1, rate_limit_rpm=-1, user_rate_limit_rpm=-1, idle_sleep_s=-1)
    assert len(policy.check_policy(wrong)) == 4


@pytest.mark.parametrize(
    ("max_engines", "engines", "left"),
    [(None, 10**9, True), (0, 0, False), (1, 0, True), (1, 1, False), (3, 2, True), (3, 9, False)],
)
def test_the_quota_counts_the_engines_that_are_there(
    max_engines: int | None, engines: int, left: bool
) -> None:
    """One more is allowed while there are fewer than the quota; None is no quota."""
    assert policy.quota_left(Policy(max_engines=max_engines), engines) is left


VALID = [
    "engine",
    "engine:2.3.0",
    "my-engine:2.3.0",
    "my_engine",
    "my__engine",
    "my.engine",
    "my--engine",
    "team/engine",
    "a/b/c/d",
    "engine:Latest_1.2-x",
    "engine:_x",
    "engine" + DIGEST,
    "engine:1" + DIGEST,
    "localhost/engine",
    "localhost:5000/engine",
    "registry:5000/engine:1",
    "REGISTRY:5000/engine",
    "registry.example/team/engine:1.2",
    "registry.example:443/engine",
    "Registry.Example/engine",
    "10.0.0.1:5000/engine",
    "my-registry.example/engine",
    "docker.io/library/busybox:1.36",
    "123",
    "engine:" + "t" * 128,
    "e" * 255,
]

INVALID = [
    "",
    " ",
    "Engine",
    "team/Engine",
    "Team/engine",
    "engine:",
    "engine@",
    "engine:a:b",
    "engine:.x",
    "engine:-x",
    "engine: 1",
    "engine:1\n",
    "engine\n",
    " engine",
    "engine ",
    "/engine",
    "engine/",
    "a//b",
    "../engine",
    "a/../b",
    "-engine",
    "engine-",
    "_engine",
    "my___engine",
    "my..engine",
    "my._engine",
    "engine@sha256:abc",
    "engine@sha512:" + "0" * 64,
    "engine" + DIGEST.upper(),
    "engine" + DIGEST + "0",
    "engine" + DIGEST + DIGEST,
    "registry.example:/engine",
    "registry.example:port/engine",
    "registry.example:123456/engine",
    "-registry.example/engine",
    "registry-.example/engine",
    "registry..example/engine",
    "user@registry.example/engine",
    "https://registry.example/engine",
    "engine --privileged",
    "engine;rm",
    "$(id)",
    "engine\0",
    "engin\u00e9",
    "0" * 64,
    "engine:" + "t" * 129,
    "e" * 256,
    "registry.example/" + "e" * 239,
    "a/" * 300,
]


@pytest.mark.parametrize("reference", VALID)
def test_an_image_reference_has_registry_path_tag_and_digest(reference: str) -> None:
    """All but the path may be left out."""
    assert policy.valid_image_reference(reference)
    assert policy.valid_image_pattern(reference)


@pytest.mark.parametrize("reference", INVALID)
def test_what_is_no_image_reference_is_never_allowed(reference: str) -> None:
    """Not even if the configuration names it by mistake."""
    assert not policy.valid_image_reference(reference)
    assert not policy.image_allowed(reference, image=reference, allowed=[reference, "*", ":*"])


@pytest.mark.parametrize("pattern", ["engine:*", "team/engine:*", "registry:5000/a/b:*"])
def test_all_tags_of_a_repository_may_be_allowed(pattern: str) -> None:
    """The star stands for the whole tag."""
    assert policy.valid_image_pattern(pattern)


@pytest.mark.parametrize(
    "pattern", ["*", ":*", "engine*", "engine:1*", "team/*", "*/engine:*", "engine:1:*", "Engine:*"]
)
def test_a_star_stands_nowhere_else(pattern: str) -> None:
    """There is no way to allow whole registries by accident."""
    assert not policy.valid_image_pattern(pattern)


@pytest.mark.parametrize(
    ("reference", "allowed"),
    [
        ("engine:1", True),  # the configured image
        ("engine:2", False),
        ("engine", False),
        ("engine:1" + DIGEST, False),
        ("other:1.0", True),  # named exactly
        ("other:1.1", False),
        ("other", False),
        ("team/any:1", True),  # any tag
        ("team/any:latest", True),
        ("team/any", True),
        ("team/any" + DIGEST, True),
        ("team/any:1" + DIGEST, True),
        ("team/any/below:1", False),
        ("team/anything:1", False),
        ("team/any:*", False),
        ("registry.example/team/any:1", False),
        ("docker.io/library/engine:1", False),
    ],
)
def test_an_engine_runs_only_what_the_configuration_allows(reference: str, allowed: bool) -> None:
    """The image itself, exact references, and any tag of a repository that says so."""
    others = ["other:1.0", "team/any:*"]
    assert policy.image_allowed(reference, image="engine:1", allowed=others) is allowed
