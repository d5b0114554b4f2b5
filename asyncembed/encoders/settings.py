"""A family's own constructor keywords, on their way from the caller to an encoder."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

from asyncembed.encoders.encoder import EncoderConfig
from asyncembed.errors import OptionError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SettingsT = TypeVar("SettingsT", bound="DataclassInstance")


@dataclass(frozen=True, slots=True)
class NoSettings:
    """For a family without keywords of its own."""


def read_settings(config: EncoderConfig, kind: type[SettingsT]) -> SettingsT:
    """What the caller says, else what the model's spec says, else the defaults of `kind`, a dataclass.

    Raises:
        OptionError: The caller says something that this model does not understand; the message names what it does.
    """
    known = [field.name for field in fields(kind)]
    for name in config.settings:
        if name not in known:
            accepted = f"only {', '.join(known)}" if known else "none of its own"
            raise OptionError(f"{config.spec.name} has no keyword {name!r}: it takes {accepted}")
    own = {name: value for name, value in config.spec.settings.items() if name in known}
    return kind(**(own | dict(config.settings)))
