"""What decoders print appears once for each kind, and nothing else that is written to standard error is lost.

The filter stays for the rest of a process, so each test takes a process of its own.
"""

import re
import subprocess
import sys

import pytest
from PIL import Image

CRASHES = """
import ctypes, faulthandler, os, sys, threading, time, traceback
from sce_fast.native import CPU

assert CPU.module.filter_decoder_messages() and CPU.module.filter_decoder_messages()
libc, cxx = ctypes.CDLL(None), ctypes.CDLL("libstdc++.so.6")

def say(text):
    libc.fputs(text.encode(), ctypes.c_void_p.in_dll(libc, "stderr"))

def as_decoder(function):
    def run():
        libc.prctl(15, b"[DALI][TP0]Exec", 0, 0, 0)
        function()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

def repeated():
    for i in range(3):
        for part in ("\\x1b[0;31m[ERROR] \\x1b[0m", f"line {i} is bad", "\\n"):
            say(part)
        say(f"other\\n\\n unfinished {i}\\n")

def mixed():
    say("C, before\\n")
    as_decoder(repeated)
    say("C, ")
    say("after\\nC, twice 1\\nC, twice 2\\n")
    print("Python", file=sys.stderr, flush=True)
    os.write(2, b"descriptor\\n")
    os.system("echo child >&2")
    as_decoder(lambda: say("never ended"))
    time.sleep(0.5)  # a joined thread may still have to destroy its variables

def python_error():
    try:
        1 / 0
    except ZeroDivisionError:
        traceback.print_exc()

def double_free():
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    place = libc.malloc(5000)
    libc.malloc(64)
    libc.free(place)
    libc.free(place)

def segmentation_fault():
    faulthandler.enable()
    ctypes.string_at(8)

def terminal():
    # a decoder's line erases the progress bar, which draws itself again below
    master, end = os.openpty()
    os.dup2(end, 2)
    say("bar")
    as_decoder(lambda: say("libpng warning: odd\\n"))
    with open(f"{sys.argv[1]}/terminal", "wb") as file:
        file.write(os.read(master, 1000))

SCENES = {
    "mixed": mixed,
    "terminal": terminal,
    "python_error": python_error,
    "segmentation_fault": segmentation_fault,
    "double_free": double_free,
    "terminate": lambda: cxx._ZSt9terminatev(),
    "terminate_in_a_decoder": lambda: as_decoder(lambda: cxx._ZSt9terminatev()),
    "fatal": lambda: ctypes.pythonapi.Py_FatalError(b"no way on"),
    "perror": lambda: libc.perror(b"perror"),
}
for name, scene in SCENES.items():
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"{sys.argv[1]}/{name}", os.O_WRONLY | os.O_CREAT), 2)
        scene()
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_nothing_else_is_lost_even_in_a_crash(tmp_path):
    subprocess.run([sys.executable, "-c", CRASHES, str(tmp_path)], check=True)
    said = {path.name: path.read_bytes().decode() for path in tmp_path.iterdir()}
    assert said["mixed"].splitlines() == [
        "C, before",
        "Image decoder: [ERROR] line 0 is bad",
        "Image decoder: other",
        "Image decoder: unfinished 0",
        "C, after",
        "C, twice 1",
        "C, twice 2",
        "Python",
        "descriptor",
        "child",
        "Image decoder: never ended",
    ]
    assert said["terminal"] == "bar\r\x1b[KImage decoder: libpng warning: odd\r\n"
    for name, text in (
        ("python_error", "ZeroDivisionError: division by zero"),
        ("segmentation_fault", "Fatal Python error: Segmentation fault"),
        ("double_free", "free"),
        ("terminate", "terminate called"),
        ("terminate_in_a_decoder", "Image decoder: terminate called"),
        ("fatal", "Fatal Python error: .*no way on"),
        ("perror", "perror: "),
    ):
        assert re.search(text, said[name]), (name, said[name])


DECODE = """
import os, sys
from sce_fast.data.image.sizes import SizeReader

paths = [os.path.join(sys.argv[1], name).encode() for name in sorted(os.listdir(sys.argv[1]))]
print(SizeReader(decode=True).sizes(paths).tolist())
"""


@pytest.mark.slow
def test_decoders_print_one_line_of_each_kind(tmp_path, photographs):
    image = Image.fromarray(photographs[0][:40, :60])
    for i in range(3):
        image.save(tmp_path / f"profile{i}.png", icc_profile=b"no profile" * 20)
        image.save(tmp_path / f"{i}.jpg")
        (tmp_path / f"{i}.jpg").write_bytes((tmp_path / f"{i}.jpg").read_bytes()[: -40 - i])
        image.convert("1").save(tmp_path / f"bilevel{i}.tif")
    done = subprocess.run([sys.executable, "-c", DECODE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("[40, 60]") == 3
    lines = done.stderr.splitlines()
    assert all(line.startswith("Image decoder: ") for line in lines), lines
    for part in (
        "libpng warning: iCCP",
        "[libjpeg_turbo_decoder] Could not decode",
        "[tiff_parser] Couldn't read TIFF",
    ):
        assert sum(part in line for line in lines) == 1, lines
    assert len(lines) == 3
