"""libmusiclm installed, packed and found, by CMake, CPack and pkg-config; and programs that were built against it, which play a bundle."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, embed

NEEDED = embed.MISSING + [name for name in ("pkg-config", "dpkg-deb", "dpkg-shlibdeps") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(NEEDED), reason=f"packages are made and tried with {', '.join(NEEDED)}, which this machine lacks")

CONSUMER = embed.SOURCE / "tests" / "consumer"
PAGE = ROOT / "docs" / "cpp.md"
CLIP = ("calm piano", "0.3")  # text and seconds
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


def run(*command: object, **options: Any) -> str:
    """Run a command and return what it printed; fail with all that it said if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert not done.returncode, f"{shlex.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def configure(source: Path, folder: Path, *settings: str) -> Path:
    """Configure and build a project. Returns the folder."""
    run("cmake", "-S", source, "-B", folder, *settings)
    run("cmake", "--build", folder)
    return folder


def play(program: Path, bundle: Path, library: Path | None = None) -> bytes:
    """Run a consumer and return the samples that it made. library: the folder of libmusiclm, for a program that does not know it."""
    environment = os.environ | {"MUSICLM_ONNXRUNTIME": str(embed.ONNXRUNTIME)} | ({"LD_LIBRARY_PATH": str(library)} if library else {})
    done = subprocess.run([program, bundle, *CLIP], capture_output=True, env=environment)
    assert not done.returncode and not done.stderr, done.stderr
    return done.stdout


def flags(prefix: Path, *options: str) -> list[str]:
    """Return what pkg-config says of an installation, wherever it was moved to."""
    environment = os.environ | {"PKG_CONFIG_PATH": str(next(prefix.rglob("pkgconfig")))}
    return shlex.split(run("pkg-config", *options, "musiclm", env=environment))


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[embed.Model]:
    """With as many threads as a consumer takes by default: the codec's last bits depend on them."""
    opened = embed.Model(embed.load(), tiny_bundle, threads=len(os.sched_getaffinity(0)))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def samples(model: embed.Model) -> bytes:
    """What every consumer must make."""
    made = model.generate(CLIP[0], seconds=CLIP[1])
    assert len(made) == 4800
    return made.tobytes()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix of an installation, at another place than it was installed to: nothing in it may name the first one."""
    folder = tmp_path_factory.mktemp("installed")
    run("cmake", "--install", embed.built(), "--prefix", folder / "first")
    return (folder / "first").rename(folder / "moved")


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix of a static library. Its objects are those of the shared one, since they are compiled alike, which is seen to."""
    folder, built = tmp_path_factory.mktemp("static") / "build", embed.built()
    run("cmake", "-S", embed.SOURCE, "-B", folder, "-DBUILD_SHARED_LIBS=OFF", "-DMUSICLM_EXAMPLES=OFF")
    for part in ("parts", "decoder_step"):
        objects = Path("CMakeFiles") / f"{part}.dir"
        assert (folder / objects / "flags.make").read_text() == (built / objects / "flags.make").read_text()
        for path in (built / objects).rglob("*.o"):
            to = folder / path.relative_to(built)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)  # not its time: it is newer than its source
    said = run("cmake", "--build", folder)
    assert "Building" not in said, said
    run("cmake", "--install", folder, "--prefix", folder.parent / "first")
    return (folder.parent / "first").rename(folder.parent / "moved")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what CPack makes: two .deb and a .tar.gz."""
    folder = tmp_path_factory.mktemp("packages")
    run("cpack", "--config", embed.built() / "CPackConfig.cmake", "-B", folder)
    return folder


def test_a_project_finds_the_library(installed: Path, tiny_bundle: Path, samples: bytes, tmp_path: Path) -> None:
    """Fault: a header that is no C99 or no C++11, a target without its folders, another library than the one that was found."""
    built = configure(CONSUMER, tmp_path, f"-DCMAKE_PREFIX_PATH={installed}")
    for program in ("consumer_c", "consumer_cpp"):
        assert play(built / program, tiny_bundle) == samples, program


def test_a_static_library_plays(static: Path, tiny_bundle: Path, samples: bytes, tmp_path: Path) -> None:
    """Fault: a static library that needs more than it says, in a program of C, or that is not linked in whole."""
    for compiler, source, standard in (("cc", "consumer.c", "-std=c99"), ("c++", "consumer.cpp", "-std=c++11")):
        program = tmp_path / compiler
        run(compiler, standard, *STRICT, CONSUMER / source, "-o", program, *flags(static, "--static", "--cflags", "--libs"))
        assert play(program, tiny_bundle) == samples, compiler
        assert "musiclm" not in run("ldd", program)


def test_what_a_static_library_defines(static: Path) -> None:
    """Fault: a name that another library of a program may have as well."""
    listed = run("nm", "--demangle", "--defined-only", "--extern-only", next(static.rglob("libmusiclm.a")))
    found = re.findall(r"^[0-9a-f]+ ([A-Z]) (.*)$", listed, re.MULTILINE)
    assert len(found) > 100
    own = re.compile(r"(ml_|ds_)\w+$|(\w+ for )?(ds_batch|decoder_step|musiclm)::")
    assert not [name for kind, name in found if kind not in "WVu" and not own.match(name)]  # weak: of the standard library and of JSON's


def test_a_version_is_asked_for(installed: Path, tmp_path: Path) -> None:
    """Fault: a project that needs a later library gets this one; one that needs this gets none; a soname that is not the interface's."""
    script = tmp_path / "found.cmake"
    script.write_text(
        f'find_package(musiclm ${{WANTED}} CONFIG QUIET PATHS "{installed}" NO_DEFAULT_PATH)\n'
        'message("${musiclm_FOUND} ${musiclm_CONSIDERED_VERSIONS}")\n'
    )
    for wanted in ("0.1.1", "0.2", "1.0"):  # test_a_project_finds_the_library has the version that is there
        done = subprocess.run(["cmake", f"-DWANTED={wanted}", "-P", script], capture_output=True, text=True)
        assert done.stderr == "0 0.1.0\n", wanted
    environment = os.environ | {"PKG_CONFIG_PATH": str(next(installed.rglob("pkgconfig")))}
    for wanted, status in (("0.1", 0), ("0.2", 1)):
        assert subprocess.run(["pkg-config", f"--atleast-version={wanted}", "musiclm"], env=environment).returncode == status
    said = run("readelf", "-d", next(installed.rglob("libmusiclm.so")))
    assert f"soname: [libmusiclm.so.{embed.load().ml_abi_version() >> 16}]" in said


def test_the_pages_lines(installed: Path, static: Path, tiny_bundle: Path, model: embed.Model, tmp_path: Path) -> None:
    """Fault: a project, a command or a program on the page of C and C++ that does not work as it stands, with either library."""
    text = PAGE.read_text(encoding="utf-8")
    (program,), (project,) = (re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for kind in ("c", "cmake"))
    (command,) = re.findall(r"^    (cc player\.c .*pkg-config .*)$", text, re.MULTILINE)
    (tmp_path / "CMakeLists.txt").write_text(project)
    kept = "static void play(const float *samples, size_t count) { fwrite(samples, sizeof *samples, count, stdout); }"
    (tmp_path / "player.c").write_text(f"#include <stdio.h>\n#include <musiclm.h>\n{kept}\nint main(void) {{\n{program}\n  return 0;\n}}\n")
    demo = tmp_path / "build" / "demo" / "bundle"
    demo.parent.mkdir(parents=True)
    demo.symlink_to(tiny_bundle)
    shown = os.environ | {"PKG_CONFIG_PATH": str(next(installed.rglob("pkgconfig"))), "CFLAGS": " ".join(STRICT)}
    run("sh", "-ec", command, cwd=tmp_path, env=shown)
    built = configure(tmp_path, tmp_path / "built", f"-DCMAKE_PREFIX_PATH={static}", f"-DCMAKE_C_FLAGS={' '.join(STRICT)}")
    for player in (tmp_path / "player", built / "player"):
        environment = {"LD_LIBRARY_PATH": str(installed / "lib"), "MUSICLM_ONNXRUNTIME": str(embed.ONNXRUNTIME)}
        done = subprocess.run([player], capture_output=True, cwd=tmp_path, env=os.environ | environment)
        assert not done.returncode and not done.stderr, done.stderr
        assert done.stdout == model.generate("calm piano").tobytes(), player


def fields(package: Path) -> dict[str, str]:
    """Return what a .deb says of itself."""
    return dict(line.split(": ", 1) for line in run("dpkg-deb", "--field", package).splitlines() if ": " in line)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or path.is_file()}


def test_debian_packages(packages: Path, tiny_bundle: Path, samples: bytes, tmp_path: Path) -> None:
    """Fault: a package without its licence or what it depends on, a library that other packages cannot depend on, or that does not play; an
    archive of other files."""
    runtime, development = sorted(packages.glob("*.deb"), key=lambda path: "-dev" in path.name)
    name = f"libmusiclm{embed.load().ml_abi_version() >> 16}"
    told, told_dev = fields(runtime), fields(development)
    architecture = run("dpkg", "--print-architecture").strip()
    assert (told["Package"], told["Version"], told["Architecture"], told["Section"]) == (name, "0.1.0", architecture, "libs")
    assert {re.split(r"[ (]", part)[0] for part in told["Depends"].split(", ")} == {"libc6", "libgcc-s1", "libstdc++6"}
    assert (told_dev["Package"], told_dev["Depends"], told_dev["Section"]) == ("libmusiclm-dev", f"{name} (= 0.1.0)", "libdevel")
    run("dpkg-deb", "--control", runtime, tmp_path / "control")
    assert (tmp_path / "control" / "shlibs").read_text() == f"libmusiclm {name[10:]} {name} (>= 0.1.0)\n"
    assert "ldconfig" in (tmp_path / "control" / "postinst").read_text()

    roots = {package: tmp_path / fields(package)["Package"] for package in (runtime, development)}
    for package, root in roots.items():
        run("dpkg-deb", "--extract", package, root)
        licence = (root / "usr/share/doc" / root.name / "copyright").read_text()
        assert "License: Expat" in licence and "nlohmann" in licence and "ftfy" in licence
    found = {package: files(root / "usr") for package, root in roots.items()}
    lib = next(path for path in found[development] if path.endswith("/libmusiclm.so")).removesuffix("/libmusiclm.so")
    assert {Path(path).name for path in found[runtime]} == {f"libmusiclm.so.{name[10:]}", f"libmusiclm.so.{name[10:]}.0", "copyright"}
    assert {f"{lib}/libmusiclm.so", f"{lib}/pkgconfig/musiclm.pc", "include/musiclm.h"} < found[development]
    assert {f"share/doc/libmusiclm-dev/{document}" for document in ("cpp.md", "examples/wav.c")} < found[development]
    (archive,) = packages.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        assert {member.name.split("/", 1)[1] for member in opened if not member.isdir()} == found[runtime] | found[development]

    shutil.copytree(roots[runtime], roots[development], symlinks=True, dirs_exist_ok=True)
    program, prefix = tmp_path / "program", roots[development] / "usr"
    run("cc", CONSUMER / "consumer.c", "-o", program, *flags(prefix, "--cflags", "--libs"))
    assert play(program, tiny_bundle, prefix / lib) == samples
    sections = run("readelf", "--sections", prefix / lib / "libmusiclm.so")
    assert ".dynsym" in sections and ".symtab" not in sections, "not stripped"


def test_no_wheel_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the wheel grows by a library that Python does without."""
    import setuptools

    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    sources = [*given["package_dir"].values(), *(source for extension in given["ext_modules"] for source in extension.sources)]
    assert len(sources) > 20 and not [source for source in sources if Path(source).parts[0] == "embed"]
