"""What is allowed: names, policies, quotas and images. Pure: answers, never acts."""

import math
import re
from collections.abc import Iterator, Sequence

from enginegate.model import Engine, OldKey, Policy, Product

COUNT_MAX = 2**53 - 1  # the largest whole number that every JSON reader keeps exact
SECONDS_MAX = 100 * 365 * 86_400  # a century: timers still count that far
REPOSITORY_MAX = 255  # Docker's own bound
OLD_KEYS_MAX = 16  # of one row: a loop of rotations must not make it and the key file grow

_USER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@|:+=~-]{0,127}")
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

# A first component with a dot, a port, or the word localhost names a registry;
# everything else is repository path, and that is lower-case.
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = rf"(?:localhost|{_LABEL}(?:\.{_LABEL})+|{_LABEL}(?=:))(?::[0-9]{{1,5}})?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = rf"(?:{_REGISTRY}/)?{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_REFERENCE = re.compile(
    rf"(?P<repository>{_REPOSITORY})(?::{_TAG})?(?:@sha256:[0-9a-f]{{64}})?", re.ASCII
)
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")  # Docker reads a bare one as an id, not as a name
_REFERENCE_MAX = REPOSITORY_MAX + len(":") + 128 + len("@sha256:") + 64
_ANY_TAG = ":*"


def valid_user_id(user_id: str) -> bool:
    return _USER_ID.fullmatch(user_id) is not None


def valid_slug(slug: str) -> bool:
    return _SLUG.fullmatch(slug) is not None


def check_policy(policy: Policy) -> list[str]:
    """Return what is wrong with a policy, one sentence per fault; empty if nothing is."""
    return list(_policy_faults(policy))


def quota_left(policy: Policy, engines: int) -> bool:
    """Return whether a product with so many engines may have one more."""
    return policy.max_engines is None or engines < policy.max_engines


def valid_image_reference(reference: str) -> bool:
    """Return whether this is `[registry[:port]/]path[:tag][@sha256:digest]`."""
    return _repository(reference) is not None


def valid_image_pattern(pattern: str) -> bool:
    """Return whether this may stand in `allowed_images`: a reference or `repository:*`."""
    bare = pattern.removesuffix(_ANY_TAG)
    if bare == pattern:
        return valid_image_reference(pattern)
    return _repository(bare) == bare


def image_allowed(reference: str, *, image: str, allowed: Sequence[str]) -> bool:
    """Return whether engines may run this: the configured image, or one allowed besides.

    Names are compared as they are written: `app` and `docker.io/library/app` are two.
    `repository:*` allows every tag and digest of that repository, no repository below.
    """
    repository = _repository(reference)
    if repository is None:
        return False
    return reference == image or reference in allowed or repository + _ANY_TAG in allowed


def _repository(reference: str) -> str | None:
    if len(reference) > _REFERENCE_MAX or _IMAGE_ID.fullmatch(reference):
        return None
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return None
    repository = match["repository"]
    return repository if len(repository) <= REPOSITORY_MAX else None


def _policy_faults(policy: Policy) -> Iterator[str]:
    for name in ("max_engines", "rate_limit_rpm", "user_rate_limit_rpm"):
        count: int | None = getattr(policy, name)
        if count is not None and not 0 <= count <= COUNT_MAX:
            yield f"{name} must be a whole number from 0 to {COUNT_MAX}"
    sleep_s = policy.idle_sleep_s
    if sleep_s is not None and not (math.isfinite(sleep_s) and 0 <= sleep_s <= SECONDS_MAX):
        yield f"idle_sleep_s must be a number from 0 to {SECONDS_MAX} (0: never sleep)"


def old_keys(row: Engine | Product, now_ms: int) -> tuple[OldKey, ...]:
    """Return the replaced keys that work all the same at `now_ms` (Unix), newest first."""
    if row.old_key_hash is None:
        return ()
    latest = OldKey(row.old_key_hash, row.old_key_until_ms)
    return tuple(old for old in (latest, *row.older_keys) if old.until_ms > now_ms)


def valid_key_hashes(engine: Engine, now_ms: int) -> list[str]:
    """Return what the engine's key file holds: the key in force, then old ones."""
    return [engine.key_hash, *(old.key_hash for old in old_keys(engine, now_ms))]
