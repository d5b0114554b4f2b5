from pathlib import Path

import pytest

from asyncembed.errors import RuntimeMissingError
from asyncembed.runtime.providers import CPU, CUDA, choose_providers, fallback_warning, missing_after_load
from asyncembed.runtime.session import SessionOptions
from tests.support.packages import pretend_gpu_package

OPENVINO = "OpenVINOExecutionProvider"


def test_auto_takes_cuda_where_it_is_and_does_not_require_it() -> None:
    choice = choose_providers(SessionOptions(device_id=1), [CUDA, CPU])
    assert choice.providers == ((CUDA, {"device_id": "1"}), (CPU, {}))
    assert not choice.required
    assert choose_providers(SessionOptions(), [CPU]).providers == ((CPU, {}),)


def test_cpu_never_asks_for_cuda() -> None:
    assert choose_providers(SessionOptions(device="cpu"), [CUDA, CPU]).providers == ((CPU, {}),)


def test_cuda_is_required_where_it_is_asked_for() -> None:
    assert choose_providers(SessionOptions(device="cuda"), [CUDA, CPU]).required == {CUDA}
    with pytest.raises(RuntimeMissingError, match=rf"(?s){CUDA} is not available.*{CPU}.*asyncembed\[gpu\].*cpu"):
        choose_providers(SessionOptions(device="cuda"), [CPU])


def test_named_providers_win_keep_their_order_and_options() -> None:
    options = SessionOptions(device="cpu", providers=((OPENVINO, (("device_type", "CPU"),)), ("cpu", ())))
    choice = choose_providers(options, [OPENVINO, CPU])
    assert choice.providers == ((OPENVINO, {"device_type": "CPU"}), (CPU, {}))
    assert choice.required == {OPENVINO, CPU}
    with pytest.raises(RuntimeMissingError, match=rf"{OPENVINO} is not available"):
        choose_providers(options, [CPU])


@pytest.mark.parametrize(("own", "device"), [((), "1"), ((("device_id", "3"),), "3")])
def test_a_named_cuda_takes_the_device_of_its_worker_unless_it_says_another(
    own: tuple[tuple[str, str], ...], device: str
) -> None:
    options = SessionOptions(device_id=1, providers=(("cuda", own), ("cpu", ())))
    assert choose_providers(options, [CUDA, CPU]).providers == ((CUDA, {"device_id": device}), (CPU, {}))


def test_numbers_of_devices_are_not_passed_over_in_silence() -> None:
    warning = fallback_warning(SessionOptions(device_id=1), [CPU], [CPU])
    assert warning is not None
    assert "device_ids= is for GPUs" in warning
    assert fallback_warning(SessionOptions(device="cpu", device_id=1), [CPU], [CPU]) is None


def test_a_provider_that_did_not_start_is_named_with_the_way_out() -> None:
    message = str(missing_after_load([CUDA], [CPU]))
    assert CUDA in message
    assert CPU in message
    assert 'device="cpu"' in message


def test_cuda_that_did_not_start_is_a_warning_where_it_was_not_asked_for() -> None:
    warning = fallback_warning(SessionOptions(), [CUDA, CPU], [CPU])
    assert warning is not None
    assert "did not start here" in warning
    assert 'device="cpu" silences it' in warning
    assert fallback_warning(SessionOptions(), [CUDA, CPU], [CUDA, CPU]) is None
    assert fallback_warning(SessionOptions(device="cpu"), [CUDA, CPU], [CPU]) is None
    assert fallback_warning(SessionOptions(providers=((CPU, ()),)), [CUDA, CPU], [CPU]) is None


def test_a_gpu_package_that_another_has_overwritten_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installing onnxruntime after onnxruntime-gpu replaces its files, while both stay in the list of packages."""
    assert fallback_warning(SessionOptions(), [CPU], [CPU]) is None
    pretend_gpu_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    warning = fallback_warning(SessionOptions(), [CPU], [CPU])
    assert warning is not None
    assert "onnxruntime-gpu is installed, but what is loaded has only CPUExecutionProvider" in warning
    assert "pip uninstall onnxruntime onnxruntime-gpu" in warning
    assert fallback_warning(SessionOptions(device="cpu"), [CPU], [CPU]) is None
