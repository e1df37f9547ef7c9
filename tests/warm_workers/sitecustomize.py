"""What each Python with this folder on its path imports first: where Ray would have it become a worker, it asks the
nursery for one, and ends with that.
"""

import os
import sys

RAYS = ("/ray/_private/workers/setup_worker.py", "/ray/_private/workers/default_worker.py")


def _ask_for_worker(place: int) -> None:
    """Have a worker forked that has this process's arguments, environment, streams, folder, signals and priority."""
    import array
    import json
    import signal
    import socket
    from contextlib import suppress

    asked = json.dumps(
        {
            "arguments": sys.orig_argv[place:],
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "priority": os.getpriority(os.PRIO_PROCESS, 0),
        }
    ).encode()
    with socket.socket(socket.AF_UNIX) as nursery:
        nursery.connect(os.environ["WARM_WORKERS"])
        streams = array.array("i", [0, 1, 2])
        nursery.sendmsg([len(asked).to_bytes(8, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        nursery.sendall(asked)
        with suppress(ConnectionResetError):  # the worker was killed
            nursery.recv(1)


if "WARM_WORKERS" in os.environ:
    for place, argument in enumerate(sys.orig_argv):
        if argument.endswith(RAYS):
            _ask_for_worker(place)
            os._exit(0)
