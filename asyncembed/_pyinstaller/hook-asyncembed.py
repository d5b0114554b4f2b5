"""What PyInstaller does not find by reading imports: data, and modules that are imported by name."""

from importlib.util import find_spec

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

datas = collect_data_files("asyncembed", excludes=["_pyinstaller"]) + copy_metadata("asyncembed")

# Neither this, nor the plugin of pytest; nor every framework that is installed: a program imports those that it uses.
NOT_PACKED = ("asyncembed._py", "asyncembed.integrations.")

hiddenimports = [
    *collect_submodules("asyncembed", filter=lambda name: not name.startswith(NOT_PACKED)),
    *collect_submodules("anyio._backends", filter=lambda name: "trio" not in name or find_spec("trio") is not None),
    # Imported by workers, or where they are first needed.
    *(name for name in ("onnxruntime", "tokenizers", "mmh3", "py_rust_stemmers", "PIL.Image") if find_spec(name)),
]
