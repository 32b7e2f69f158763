"""A Python that has imported the stages' libraries once: it runs what `python` is asked for in a fork of itself.

The commands of dvc.yaml start a Python for each stage, and most of a small stage's time it imports torch and
transformers. The stages' own modules are imported anew in every fork, from the folder that it runs in.
"""

import gc
import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("dqlora", "stages")
# Which libraries import late. Not onnxruntime: it starts threads, which a fork lacks.
LAZY = ("bitsandbytes", "dvc.repo", "onnxscript", "peft.tuners.lora")
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
code = int(server.makefile().read())
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def warm_python(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder with a `python` for PATH, as long as the context lasts: `python [-u] -m MODULE ...` or `-c CODE ...`.

    Libraries read `environment` when they are imported; all else is of the environment that each command is given.
    """
    address, client = folder / "socket", folder / "bin/python"
    client.parent.mkdir(parents=True)
    client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    client.chmod(0o755)
    command = [sys.executable, "-u", __file__, str(address)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as server:
        assert server.stdout and server.stdout.readline() == b"warm\n"
        try:
            yield client.parent
        finally:
            server.terminate()


def import_libraries() -> None:
    """What the stages import, without their own modules."""
    sys.path[0] = str(ROOT)
    for stage in sorted((ROOT / "stages").glob("*.py")):
        import_module(f"stages.{stage.stem}")
    for name in LAZY:
        import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]


def execute(arguments: list[str]) -> None:
    kind, what, *rest = [each for each in arguments if each != "-u"]
    sys.argv, sys.orig_argv = [kind, *rest], [sys.executable, *arguments]
    sys.modules.pop("sitecustomize", None)  # the server's own, which some systems have
    with suppress(ModuleNotFoundError):  # as Python does when it starts
        import_module("sitecustomize")
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})


def serve(address: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("warm")
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        length, descriptors, *_ = socket.recv_fds(connection, 4, 3)
        arguments, folder, environment = json.loads(connection.makefile("rb").read(int.from_bytes(length, "big")))
        if started := os.fork():
            code = os.waitstatus_to_exitcode(os.waitpid(started, 0)[1])
            connection.sendall(str(code).encode())
            os._exit(0)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        return execute(arguments)


if __name__ == "__main__":
    import_libraries()
    gc.freeze()  # else each fork spends seconds on collecting them when it ends
    serve(sys.argv[1])
