"""Which profile each destination has, of ours and of those that the site describes.

Knows the settings and `sr_templates.Profile`. Everything is checked when it is read, before an
association is accepted or a model loaded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

from sr_templates import GENERIC, PROFILES, Profile, TemplateError

from .config import Config, SiteProfile
from .errors import ConfigError

NONE: Final = "none"  # TOML has no word for it
NULLABLE: Final = frozenset({"segmentation", "measurements"})
DEFAULTS: Final[Mapping[str, Any]] = {
    each.name: each.default for each in fields(Profile) if each.name != "name"
}
WORDS: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    str: "a text",
    tuple: "a list of texts",
}


def known(config: Config) -> dict[str, Profile]:
    """Give our profiles and those of the site by name; one may be like one described before it.

    Raises
    ------
    ConfigError
        A profile has a name that is taken, is like one that is not known, or has a field or a
        value that there is not; or a destination has a profile that is not known.
    """
    found = dict(PROFILES)
    for each in config.profiles:
        if each.name in found:
            raise ConfigError(f"profiles: {each.name} is taken, give yours another name")
        like = _named(each.like, found, f"profiles: {each.name} is like")
        found[each.name] = _changed(like, each)
    for destination in config.destinations:
        _named(destination.profile, found, f"destinations: the profile of {destination} must be")
    return found


def of(config: Config) -> list[Profile]:
    """Give the profiles that objects are to be made for, each once, what all can show first.

    That is the one the QA pages show, whatever the destinations get. Raises as `known`.
    """
    found = known(config)
    return once(found[each.profile] for each in config.destinations)


def named(config: Config, names: Iterable[str]) -> list[Profile]:
    """Give the profiles with these names; without any, what all destinations can show.

    Raises
    ------
    ConfigError
        There is none of such a name; or as `known`.
    """
    found = known(config)
    return [_named(each, found, "--profile must be") for each in names] or [GENERIC]


def once(profiles: Iterable[Profile]) -> list[Profile]:
    """Put what all destinations can show before the profiles, and each of them once."""
    return list(dict.fromkeys((GENERIC, *profiles)))


def _named(name: str, found: Mapping[str, Profile], what: str) -> Profile:
    if name not in found:
        raise ConfigError(f"{what} one of {', '.join(found)}, not {name!r}")
    return found[name]


def _changed(like: Profile, site: SiteProfile) -> Profile:
    values = {key: _value(site.name, key, value) for key, value in site.changed}
    try:
        return like.like(name=site.name, **values)
    except TemplateError as error:
        raise ConfigError(f"profiles: {error}") from error


def _value(name: str, key: str, value: object) -> object:
    """Check a field and its type; which values there are, the profile itself knows."""
    if key not in DEFAULTS:
        raise ConfigError(
            f"profiles: {name} has {key!r}; there are name, like, {', '.join(DEFAULTS)}"
        )
    kind = type(DEFAULTS[key])
    fits = type(value) is kind and (kind is not tuple or all(isinstance(v, str) for v in value))  # type: ignore[attr-defined]
    if not fits:
        raise ConfigError(f"profiles: {key} of {name} must be {WORDS[kind]}, not {value!r}")
    return None if key in NULLABLE and value == NONE else value
