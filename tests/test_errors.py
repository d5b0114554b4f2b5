"""Every error survives the way between processes."""

import inspect
import pickle

import pytest

from asyncembed import errors
from asyncembed.errors import AsyncEmbedError, EncodeError, InputError, WorkerCrashed, WorkerError

ERRORS = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, AsyncEmbedError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_with_its_attributes(kind: type[AsyncEmbedError]) -> None:
    parameters = inspect.signature(vars(kind).get("__init__", kind.__init__)).parameters.values()
    keywords = {
        parameter.name: f"the {parameter.name}" for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
    }
    error = kind("what happened", **keywords)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert {name: getattr(copy, name) for name in keywords} == keywords


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_needs_no_more_than_its_message(kind: type[AsyncEmbedError]) -> None:
    """A required keyword would make its unpickling fail, which breaks a whole executor."""
    assert str(kind("what happened")) == "what happened"


@pytest.mark.parametrize("kind", [InputError, EncodeError, WorkerCrashed])
def test_an_error_of_one_input_names_it(kind: type[InputError | WorkerError]) -> None:
    assert str(kind("what happened", index=7)) == "input 7: what happened"


def test_every_error_has_one_base_and_says_what_it_means() -> None:
    for kind in ERRORS:
        assert kind.__doc__
        assert issubclass(kind, AsyncEmbedError)
    assert {"InputError", "StateError", "WorkerCrashed", "ModelLoadError"} <= {kind.__name__ for kind in ERRORS}
