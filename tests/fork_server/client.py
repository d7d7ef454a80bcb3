# What stands in for python: hands its command to the server, passes signals on, ends as the command ends.
# Above this text stand its interpreter, REAL and FOLDER. It imports little: it starts for each process of a test.
import array
import json
import os
import signal
import socket
import sys

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)


def main() -> None:
    command = sys.argv[1:]
    if command and command[0].startswith("-") and command[0] not in ("-u", "-c", "-m"):
        os.execv(REAL, [REAL, *command])  # noqa: F821, an option that only a start could follow
    # nothing is lost between the start of the command and the first look
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{FOLDER}/socket")  # noqa: F821
    text = {"command": command, "cwd": os.getcwd(), "environment": dict(os.environ), "client": os.getpid()}  # noqa: PTH109, pathlib takes longer to import than all of this
    text["ignored"] = [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
    message = json.dumps(text).encode()
    descriptors = array.array("i", [0, 1, 2])
    server.sendmsg([len(message).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    server.sendall(message)
    process = int.from_bytes(receive(server, 8), "big")
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    status = int.from_bytes(receive(server, 8), "big", signed=True)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def receive(server, size):
    data = b""
    while len(data) < size:
        piece = server.recv(size - len(data))
        if not piece:
            raise SystemExit("the fork server is gone")
        data += piece
    return data


main()
