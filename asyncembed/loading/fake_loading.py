"""What a worker needs of a model without weights, for the tests of a program."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.lookup import (
    find_model,
)
from asyncembed.catalogue.spec import Family, ModelSpec
from asyncembed.encoders.encoder import EncoderConfig
from asyncembed.encoders.registry import check_settings, row_of
from asyncembed.faking import ENCODER, SETTING, Fakes
from asyncembed.loading.locate import check_family
from asyncembed.options import Options

FAKE_DIMS: Mapping[Family, int] = {
    "text": 384, "image": 512, "late_interaction": 128, "late_interaction_multimodal": 128, "hybrid": 384,
}  # fmt: skip
"""Of fakes of models that the catalogue does not know, unless a test says otherwise."""

FAKE_MAX_LENGTH = 512
"""Words of a text, unless a test or a catalogued model says otherwise."""


async def prepare_fake(
    fakes: Fakes,
    name: str | os.PathLike[str] | ModelSpec,
    family: Family,
    options: Options,
    *,
    place: Path | None,  # noqa: ARG001 (what `prepare` takes)
    overrides: Overrides,
    settings: Mapping[str, object],
) -> EncoderConfig:
    """`prepare` for a fake, which needs no files: any name will do, and the catalogue says what it can say.

    Raises:
        OptionError: A keyword that the catalogued model of this name does not have; or the spec is of another family.
    """
    fakes.announce()
    if fakes.opening_error is not None:
        raise fakes.opening_error
    if isinstance(name, ModelSpec):
        check_family(name, family)
        spec = name
    else:
        unknown = ModelSpec(name=os.fspath(name), family=family, encoder=ENCODER, sources=(), is_catalogued=False)
        spec = (find_model(name, family) if isinstance(name, str) else None) or unknown
    check_settings(spec, settings)
    has_limit = spec.encoder == ENCODER or not row_of(spec).is_cheap
    faked = replace(
        spec,
        encoder=ENCODER,
        sources=(),
        model_file=None,
        additional_files=(),
        dim=spec.dim or (FAKE_DIMS.get(family) and (fakes.dim or FAKE_DIMS[family])),
        max_length=overrides.max_length or spec.max_length or (FAKE_MAX_LENGTH if has_limit else None),
        settings={**spec.settings, SETTING: fakes},
    )
    return EncoderConfig(
        spec=faked,
        directory=Path(),
        max_length=options.max_length,
        max_batch_tokens=options.batch_tokens(has_graph=True),
        max_batch_size=options.max_batch_size,
        keywords=settings,
    )
