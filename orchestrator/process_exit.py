"""Ending the process at once, from whatever thread: the main one may wait in Ray's compiled code for minutes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console

from orchestrator.errors import print_error
from orchestrator.failures import describe_error

LAST_WORK_S = 45.0
"""How long the last work may take: a storage may not answer either."""


def end_process(code: int, message: str | None = None, *, last_work: Callable[[], None] = lambda: None) -> NoReturn:
    """Do the last work, print the message as an error, and exit with the code, also if that work fails or hangs."""

    def work() -> None:
        try:
            last_work()
        except Exception as error:
            print_error(f"at the end: {describe_error(error)}")
        sys.stdout.flush()  # here, since whoever reads it may have stopped

    working = threading.Thread(target=work, name="last work", daemon=True)
    working.start()
    working.join(LAST_WORK_S)
    if message is not None:
        print_error(message)
    end_at_once(code)


def end_at_once(code: int) -> NoReturn:
    """Exit with the code, and leave the terminal as it was."""
    Console().show_cursor()  # a progress display hides it
    os._exit(code)
