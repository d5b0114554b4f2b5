"""Images as clients send them: what is a URL, what is a file, and that nothing is a path of the server."""

import base64
from pathlib import Path

import pytest

from asyncembed.errors import InputError
from tests.support.images import encoded, picture

pytestmark = pytest.mark.slow  # importing the server takes as long as all of these


def images_of(*images: str) -> list[str | bytes]:
    from asyncembed.server.sent_images import images_of

    return images_of(images)


@pytest.mark.parametrize("url", ["http://example.org/a.png", "HTTPS://example.org/a.png?b=c"])
def test_a_url_is_left_to_the_model_which_fetches_it_guarded(url: str) -> None:
    assert images_of(url) == [url]


def test_the_file_in_a_data_uri_and_in_plain_base64_is_unpacked() -> None:
    data = encoded(picture(3, 2), "PNG")
    text = base64.b64encode(data).decode()
    assert images_of(f"data:image/png;base64,{text}", f"DATA:;base64,{text}", text, text.rstrip("=")) == [data] * 4


def test_a_data_uri_without_base64_is_unquoted() -> None:
    assert images_of("data:image/x-portable-graymap,P2%201%201%20255%2042") == [b"P2 1 1 255 42"]


def test_a_path_of_the_server_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(picture(3, 2), "PNG"))
    for text in (str(path), path.as_uri(), "./secret.png", "~/.ssh/id_rsa"):
        try:
            (image,) = images_of(text)
        except InputError:
            continue
        assert isinstance(image, bytes), "decoded as base64 at most"


def test_what_is_neither_says_what_would_be_and_which_it_is() -> None:
    with pytest.raises(InputError, match="input 1: an image is a URL"):
        images_of("http://example.org/a.png", "not an image!")
    with pytest.raises(InputError, match="comma"):
        images_of("data:image/png;base64")
